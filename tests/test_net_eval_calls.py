"""net_eval: what it refuses, the way from a net to its kernel, and the kernel on a GPU."""

from __future__ import annotations

import copy

import pytest
import torch
from cases import Recorder, assert_errs_like_eager
from cuda_host.ops import on_host
from net_eval_cases import DTYPES, make_net, run
from torch import nn
from torch.nn import functional as F

from pathnet import PathResNet, Paths, analysis, explain, extension, use_backend
from pathnet.backend import refusal
from pathnet.models.whole import whole_net
from pathnet.ops.net_eval import SUPPORTS, net_eval, unfit
from pathnet.ops.net_eval_limits import missing_memory, shared_bytes

pytestmark = pytest.mark.cuda_host


# ---- what is refused -------------------------------------------------------------------------------------------


def test_refusals_are_sentences(monkeypatch):
    x = torch.randn(1, 3, 32, 32)
    assert unfit(x, whole_net(make_net())) is None
    assert "hook" in unfit(x, None)
    assert "torch.float64" in unfit(x.double(), whole_net(make_net()))
    assert "weights are torch.float32" in unfit(x.bfloat16(), whole_net(make_net()))
    assert "33x32 = 1056 pixels" in unfit(torch.randn(1, 3, 33, 32), whole_net(make_net()))
    assert "stage 2 has 16x17 = 272 pixels" in unfit(torch.randn(1, 3, 31, 33), whole_net(make_net(width=32)))
    assert "64 channels, and this kernel is compiled for 16 and 32" in unfit(x, whole_net(make_net(width=64)))
    assert "classifier takes 256 channels" in unfit(x, whole_net(make_net(depth=11, block="bottleneck")))
    training = make_net()
    training.layer2[0].bn1.train()
    assert "batch statistics" in unfit(x, whole_net(training))
    odd = make_net()
    odd.layer3[0].downsample.before, odd.layer3[0].downsample.after = 15, 17
    assert "even number" in unfit(x, whole_net(odd))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert "allow_tf32" in unfit(x, whole_net(make_net()))


def test_a_net_that_was_changed_is_no_whole_net():
    hooked, swapped, replaced, stem = (make_net() for _ in range(4))
    hooked.layer1.register_forward_hook(lambda *_: None)
    swapped.fc = nn.Sequential(swapped.fc)
    replaced.layer2[0].conv1 = nn.Sequential(replaced.layer2[0].conv1, nn.Dropout())
    stem.stem = lambda x, update=True: x
    assert [whole_net(net) for net in (hooked, swapped, replaced, stem)] == [None] * 4

    class Own(PathResNet):
        def head(self, x, update=True):
            return 2 * super().head(x, update)

    assert whole_net(Own(depth=8)) is None
    assert whole_net(PathResNet(depth=18, stem="imagenet")) is None


def test_shared_memory_that_is_missing_is_named():
    assert shared_bytes(torch.bfloat16, 32, 32) == 24 * 1024 + 34 * 34 * 16 * 2
    for chip in ((8, 0), (8, 6), (8, 9), (9, 0), (10, 0)):
        assert missing_memory(chip, torch.bfloat16, 32, 32) is None
        assert missing_memory(chip, torch.float32, 32, 32) is None
        assert missing_memory(chip, torch.bfloat16, 32, 32, 32) is None
    assert missing_memory((9, 0), torch.float32, 32, 32, 32) is None
    assert "5.5 KiB are missing" in missing_memory((8, 0), torch.float32, 32, 32, 32)
    assert missing_memory((8, 0), torch.float32, 4, 256) is None
    assert "needs 120.8 KiB" in missing_memory((8, 6), torch.float32, 4, 256)
    assert "21.8 KiB are missing" in missing_memory((8, 6), torch.float32, 4, 256)
    assert "8.0" in missing_memory((7, 5), torch.bfloat16, 32, 32)


# ---- from the net to the kernel ----------------------------------------------------------------------------------


def test_a_net_in_evaluation_is_one_call(monkeypatch):
    monkeypatch.setitem(SUPPORTS, "cuda", unfit)  # whatever the device
    net, x = make_net().bfloat16(), torch.randn(2, 3, 8, 8).bfloat16()
    paths = Paths.delete(3, [1])
    with on_host(), use_backend("cuda"), torch.no_grad(), Recorder() as recorder:
        got = net(x, paths=paths)
    assert [str(call) for call, _ in recorder.calls] == ["pathnet.net_eval.default"]
    assert torch.equal(got, run(net, x, paths))
    net.layer1.register_forward_hook(lambda *_: None)
    with (
        use_backend("cuda"),
        torch.no_grad(),
        pytest.raises(RuntimeError, match="cannot run net_eval: the net has a hook"),
    ):
        net(x)


def test_the_lesion_engine_runs_all_lesions_in_one_call(monkeypatch):
    """Equal ones once; the bits are those of the net's own call."""
    monkeypatch.setitem(SUPPORTS, "cuda", unfit)  # whatever the device
    net, data = make_net(depth=14).bfloat16(), (torch.randn(3, 3, 8, 8).bfloat16(), torch.tensor([0, 1, 2]))
    swapped = Paths.delete(6, []).reordered([1, 0, 2, 3, 4, 5])
    lesions = [None, *(Paths.delete(6, [i]) for i in range(6)), swapped.scaled(0.5), Paths.delete(6, [2])]
    with on_host(), use_backend("cuda"):
        with Recorder() as recorder:
            results = analysis.evaluate(net, data, lesions, batch_size=2)
        with torch.no_grad():
            alone = [torch.cat([net(x, paths=paths) for x in data[0].split(2)]) for paths in lesions]
    calls = [args for call, args in recorder.calls if str(call) == "pathnet.net_eval.default"]
    assert [(len(args[0]), args[8]) for args in calls] == [(2, 8), (1, 8)]  # images, masks
    for result, logits in zip(results, alone, strict=True):
        assert torch.equal(result.predictions, logits.argmax(1))
        losses = [
            F.cross_entropy(*part, reduction="sum").item()
            for part in zip(logits.double().split(2), data[1].split(2), strict=True)
        ]
        assert result.loss == sum(losses) / 3


def test_lesions_that_the_kernel_does_not_take_run_as_before(monkeypatch):
    monkeypatch.setitem(SUPPORTS, "cuda", unfit)
    net, data = make_net(depth=14).bfloat16(), (torch.randn(2, 3, 8, 8).bfloat16(), torch.tensor([0, 1]))
    net.layer1.register_forward_hook(lambda *_: None)
    with on_host(), Recorder() as recorder:
        analysis.evaluate(net, data, [None, Paths.delete(6, [1])])
    assert not [call for call, _ in recorder.calls if "net_eval" in str(call)]


def test_explain_names_the_kernel_or_its_refusal(monkeypatch):
    net, x = make_net(), torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        assert refusal("net_eval", "cuda", SUPPORTS, x, whole_net(net)) in str(explain(net, x))
        monkeypatch.setitem(SUPPORTS, "cuda", unfit)
        with use_backend("cuda"):
            rows = explain(net, x).blocks
    assert {(row.op, row.backend, row.precision, row.fused) for row in rows} == {("net_eval", "cuda", "tf32", True)}


def test_without_a_gpu_the_kernel_is_refused():
    reason = refusal("net_eval", "cuda", SUPPORTS, torch.randn(1, 3, 8, 8), whole_net(make_net()))
    assert reason is not None and (extension.why_not("cuda") or "x is on cpu") in reason


def test_the_fake_has_the_shape_of_the_logits(monkeypatch):
    monkeypatch.setitem(SUPPORTS, "cuda", unfit)
    net, x = make_net().bfloat16(), torch.randn(2, 3, 8, 8).bfloat16()
    with on_host(), Recorder() as recorder:
        net_eval(x, whole_net(net))
        ((call, args),) = recorder.calls
        torch.library.opcheck(call, args, test_utils=("test_schema", "test_faketensor"))


# ---- on a GPU ----------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "block, shortcut, width, size",
    [("basic", "pad", 16, 32), ("basic", "conv", 16, 32), ("preact", "pad_end", 16, 31), ("preact", "conv", 32, 32)],
)
def test_on_a_gpu(block, shortcut, width, size, dtype):
    """The kernel itself, against float64 and eager PyTorch on the same GPU."""
    net = make_net(depth=20, block=block, shortcut=shortcut, width=width).cuda()
    x = torch.randn(5, 3, size, size, device="cuda").to(dtype)
    if missing_memory(torch.cuda.get_device_capability(), dtype, size, size, width):
        pytest.skip("this GPU has too little shared memory")
    paths = Paths(torch.randint(0, 2, (5, 9))).scaled(torch.rand(5, 9))
    with use_backend("reference"):
        truth = copy.deepcopy(net).double()(x.double(), paths)
        eager = copy.deepcopy(net).to(dtype)(x, paths)
    with use_backend("cuda"):
        assert_errs_like_eager(net.to(dtype)(x, paths), eager, truth)
