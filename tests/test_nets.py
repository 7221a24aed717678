"""PathResNet as a module: sizes, torchvision's values, copies, formats, dtypes, weights, wrong arguments."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from safetensors.torch import save_file
from test_paths import make

from pathnet import Gate, PathResNet, Paths, explain, load_weights, profile, use_backend
from pathnet.samplers import KeepExactly

PARAMETERS = {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018, 110: 1_727_962, 1202: 19_421_274}
TORCHVISION = {18: 11_689_512, 34: 21_797_672, 50: 25_557_032, 101: 44_549_160, 152: 60_192_808}


def count(net) -> int:
    return sum(p.numel() for p in net.parameters())


def test_parameter_counts():
    """Property 17, and torchvision's counts."""
    with torch.device("meta"):
        for depth, expected in PARAMETERS.items():
            net = PathResNet(depth)
            assert count(net) == expected and net.num_blocks == (depth - 2) // 2
        for depth, expected in TORCHVISION.items():
            assert count(PathResNet(depth, 1000, stem="imagenet")) == expected


@pytest.mark.parametrize("depth", list(TORCHVISION))
def test_torchvision_weights_load_key_for_key_and_give_its_outputs(depth):
    try:
        import torchvision
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another torch
        pytest.skip(f"torchvision does not import beside torch {torch.__version__}: {error}")
    theirs = getattr(torchvision.models, f"resnet{depth}")(num_classes=7)
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    ours = PathResNet(depth, 7, stem="imagenet")
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 32, 32)
    for training in (True, False):
        ours.train(training), theirs.train(training)
        with torch.no_grad(), use_backend("reference"):
            assert torch.equal(ours(x), theirs(x))
    for a, b in zip(ours.buffers(), theirs.buffers(), strict=True):
        assert torch.equal(a, b)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-3, atol=1e-3)


def test_names_are_the_usual_ones():
    keys = set(PathResNet(8).state_dict())
    assert {"conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight", "layer3.0.bn2.bias", "fc.bias"} <= keys
    keys = set(PathResNet(8, block="preact").state_dict())
    assert {"layer1.0.bn1.weight", "layer1.0.conv2.weight", "bn.weight"} <= keys and "bn1.weight" not in keys


@pytest.mark.parametrize("way", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_are_independent_equals(way):
    net, x = make(paths=KeepExactly(2))
    twin = way(net)
    assert torch.equal(twin(x), net(x)) and twin.paths == net.paths
    twin.conv1.weight.data.zero_()
    assert not torch.equal(twin(x), net(x))


def test_state_dict_round_trip_through_a_file():
    net, x = make(paths=KeepExactly(2))
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    torch.manual_seed(9)
    fresh = PathResNet(8, width=4, paths=KeepExactly(2)).double().eval()
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(fresh(x), net(x))


@pytest.mark.parametrize("training", [False, True])
def test_channels_last(training):
    net, x = make(training, dtype=torch.float32)
    twin, _ = make(training, dtype=torch.float32)
    twin.to(memory_format=torch.channels_last)
    gates = Paths([1, 2, 4])
    z = x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(twin(z, paths=gates), net(x, paths=gates), rtol=1e-4, atol=1e-4)
    inside = twin.layer2(twin.layer1(twin.stem(z)))
    assert inside.is_contiguous(memory_format=torch.channels_last)
    twin(z, paths=gates).sum().backward()
    net(x, paths=gates).sum().backward()
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-3)


def test_autocast_and_other_dtypes():
    net, x = make(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = net(x, paths=Paths([1, 2, 3]))
        y.float().sum().backward()
    assert y.dtype == torch.bfloat16 and all(
        g.isfinite().all() for g in (p.grad for p in net.parameters()) if g is not None
    )
    with torch.no_grad():
        plain = net(x)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(net(x).float(), plain, rtol=0.1, atol=0.1)
    assert net.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


def test_repr_prints_and_prefix_sizes_hold():
    net = PathResNet(8)
    assert "BasicBlock" in repr(net) and "PadShortcut" in repr(net)
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert PathResNet(11, block="bottleneck").num_features == 256
    assert PathResNet(11, block="preact_bottleneck").bn.num_features == 256
    assert net.eval()(torch.randn(0, 3, 32, 32)).shape == (0, 10)


# ---- weights ---------------------------------------------------------------------------------------------------------


def test_weights_in_their_usual_spellings(tmp_path):
    net, x = make(dtype=torch.float32)
    plain = {k.replace("fc.", "linear."): v for k, v in net.state_dict().items() if "num_batches" not in k}
    wrapped = {"state_dict": {f"module.{k}": v for k, v in plain.items()}, "epoch": 3}
    torch.save(wrapped, tmp_path / "a.th")
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, tmp_path / "b.safetensors")
    for source in (tmp_path / "a.th", str(tmp_path / "b.safetensors"), wrapped, plain):
        fresh = PathResNet(8, width=4).eval()
        load_weights(fresh, source)
        assert torch.equal(fresh(x), net(x))


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


def test_weights_that_do_not_fit_are_named(tmp_path, capsys):
    net = PathResNet(8, width=4)
    weights = dict(net.state_dict())
    weights["layer9.weight"] = torch.zeros(1)
    weights["fc.weight"] = torch.zeros(3, 3)
    del weights["conv1.weight"], weights["layer2.0.bn1.bias"]
    with pytest.raises(ValueError) as caught:
        load_weights(net, weights)
    for words in (
        "missing: conv1.weight, layer2.0.bn1.bias",
        "unexpected: layer9.weight",
        "fc.weight [3, 3] instead of [10, 16]",
    ):
        assert words in str(caught.value)
    good = tmp_path / "good.pt"
    torch.save(net.state_dict(), good)
    (tmp_path / "short.pt").write_bytes(good.read_bytes()[:100])
    (tmp_path / "text.safetensors").write_text("no")
    torch.save({"weight": Evil()}, tmp_path / "evil.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(FileNotFoundError, match="none at"):
        load_weights(net, tmp_path / "absent.pt")
    for name, words in {
        "short.pt": "truncated",
        "text.safetensors": "truncated",
        "evil.pt": "could run code",
        "list.pt": "must hold a state dict",
    }.items():
        with pytest.raises(ValueError, match=words):
            load_weights(net, tmp_path / name)
    assert "code ran" not in capsys.readouterr().out


# ---- wrong arguments -------------------------------------------------------------------------------------------------

GOOD = torch.zeros(2, 3, 8, 8)


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda: PathResNet(21), ValueError, r"depth must be 6n\+2 .* got 21; the nearest are 20 and 26"),
        (lambda: PathResNet(2), ValueError, "depth must be"),
        (lambda: PathResNet(20, block="bottleneck"), ValueError, None),
        (lambda: PathResNet(21, stem="imagenet"), ValueError, "depth must be one of 18, 34, 50, 101, 152"),
        (lambda: PathResNet(50, stem="imagenet", block="basic"), ValueError, "depth must be one of 18, 34 with block"),
        (lambda: PathResNet(8, block="wide"), ValueError, "block must be one of 'basic', 'preact', 'bottleneck'"),
        (lambda: PathResNet(8, stem="mnist"), ValueError, "stem must be one of"),
        (lambda: PathResNet(8, shortcut="none"), ValueError, "shortcut must be one of"),
        (lambda: PathResNet(8, bn="some"), ValueError, "bn must be one of 'active', 'all'"),
        (lambda: PathResNet(8, unused_grad="no"), ValueError, "unused_grad must be one of"),
        (lambda: PathResNet(8, precision="int4"), ValueError, "precision must be one of None"),
        (lambda: PathResNet(8, paths=[1, 0, 1]), TypeError, "paths must be a Paths, a sampler or None, got list"),
        (lambda: PathResNet(8, paths=Paths([1, 0])), ValueError, "each of the net's 3 blocks, got 2"),
        (lambda: PathResNet(8)(GOOD, paths=Paths([1, 0])), ValueError, "each of the net's 3 blocks, got 2"),
        (lambda: PathResNet(8)(GOOD, paths=KeepExactly(1)), TypeError, "samplers go to net.paths"),
        (lambda: PathResNet(8)(GOOD, paths=Paths([[1, 1, 1]] * 3)), ValueError, "one row for each of the 2 images"),
        (
            lambda: PathResNet(8)(GOOD, paths=Paths([1, 1, 1]).scaled(torch.ones(3, 3))),
            ValueError,
            "per-sample multiplier must have one row for each of the 2 images of x, got 3",
        ),
        (lambda: PathResNet(8)(GOOD.int()), TypeError, r"floating-point images, got torch.int32"),
        (lambda: PathResNet(8)(GOOD.to(torch.complex64)), TypeError, "floating-point images, got torch.complex64"),
        (lambda: PathResNet(8)(GOOD.numpy()), TypeError, "got ndarray"),
        (lambda: PathResNet(8)(GOOD[0]), ValueError, r"shape \[N, 3, H, W\], got \[3, 8, 8\]"),
        (lambda: PathResNet(8)(GOOD[:, :1]), ValueError, r"shape \[N, 3, H, W\], got \[2, 1, 8, 8\]"),
        (lambda: PathResNet(8)(GOOD[:, :, :3]), ValueError, "at least 4x4 pixels"),
        (lambda: PathResNet(18, stem="imagenet")(GOOD), ValueError, "at least 32x32 pixels"),
        (lambda: PathResNet(8)(GOOD[:0]), ValueError, "at least one image in training"),
        (lambda: PathResNet(8)(GOOD[:1, :, :4, :4]), ValueError, "at least two values a channel, but 1 image"),
        (lambda: PathResNet(8).to("meta")(GOOD), ValueError, "one device, got x on cpu and the net on meta"),
        (lambda: use_backend("gpu").__enter__(), ValueError, "backend must be one of cuda, triton, cpu, reference"),
    ],
)
def test_wrong_arguments_get_a_sentence(call, error, words):
    if words is None:
        assert call().num_blocks == 6
        return
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("backend, words", [("cuda", "cannot run"), ("triton", "these kernels take float32")])
def test_a_backend_forced_where_it_cannot_run_says_why(backend, words):
    net, x = make(dtype=torch.float32 if backend == "cuda" else torch.float64)
    with use_backend(backend):
        for grad in (True, False):
            if backend == "cuda":  # in evaluation net_eval is asked first; this machine or x's device is against both
                words = "cannot run stage_train: " if grad else "cannot run net_eval: "
            with torch.set_grad_enabled(grad), pytest.raises(RuntimeError, match=words):
                net(x)
    assert net(x).isfinite().all()  # and the choice is undone


# ---- explain and profile ---------------------------------------------------------------------------------------------


def test_explain_is_about_the_call_as_it_stands():
    net, x = make(dtype=torch.float32)
    assert {row.op for row in explain(net, x).blocks} == {"stage_train"}
    with torch.no_grad():
        rows = explain(net, x).blocks
        assert {row.op for row in rows} == {"stage_eval"} and len(rows) == 3
        assert "float64" in explain(net.double(), x.double()).blocks[0].reasons["cpu"]
    assert "] cuda: " in str(explain(net, x.double()))
    with pytest.raises(TypeError, match=r"net must be a pathnet\.PathResNet"):
        explain(torch.nn.Linear(1, 1), x)


def test_profile_counts_launches_bytes_and_what_is_saved():
    net, x = make(dtype=torch.float32)
    with torch.no_grad(), use_backend("reference"):
        everything = profile(net, x)
        nothing = profile(net, x, Paths.keep(3, []))
        convolutions = everything.kernels["aten.convolution"]
    stem = 4 * (x.numel() + net.conv1.weight.numel()), 4 * 4 * 4 * 8 * 8
    assert convolutions.launches == 7 and nothing.kernels["aten.convolution"].launches == 1
    assert (nothing.kernels["aten.convolution"].read, nothing.kernels["aten.convolution"].written) == stem
    assert nothing.launches < everything.launches and nothing.read < everything.read
    assert everything.saved == 0 and profile(net, x).saved > 0
    with use_backend("reference"):
        both = profile(net, x, backward=True)
    assert both.kernels["aten.convolution_backward"].launches == both.kernels["aten.convolution"].launches == 7
    assert "aten.convolution" in str(everything) and "saved for backward" in str(everything)


def test_gate_is_an_int_enum_with_the_values_of_the_contract():
    assert [(g.name, int(g)) for g in Gate] == [
        ("OFF", 0),
        ("FULL", 1),
        ("FORWARD", 2),
        ("FROZEN", 3),
        ("RESIDUAL", 4),
    ]
