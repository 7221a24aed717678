"""stage_train on the Triton kernels: planted bugs, autograd's rules, refusals, and the ops as PyTorch sees them."""

from __future__ import annotations

import pytest
import torch
from cases import Recorder, make_stage, specs
from training_cases import check, images, route_of, step, stream
from triton_cases import DEVICE, DIRECT, interpreted, on_device

from pathnet import PathResNet, explain, use_backend
from pathnet.backend import refusal
from pathnet.ops.stage_train import LOSES, SUPPORTS, stage_train

pytestmark = on_device

BUGS = {
    "no zero behind the prologue": ("conv_forward.py", "tl.where(within, tl.maximum(value, 0.0), 0.0)",
                                    "tl.maximum(value, 0.0)"),
    "no zero behind the norm's backward": ("entering.py", "tl.where(within, gradient, 0.0)", "gradient"),
    "a lost partial sum": ("norm.py", "of_g += tl.sum(tl.load(at, within",
                           "of_g += tl.sum(tl.load(at, within & (tile > 0)[:, None]"),
    "a lost slot of weights": ("weight_gradient.py", "for _ in range(slots)", "for _ in range(1, slots)"),
    "a mask that forgets": ("bits.py", "packed &= tl.load", "packed |= tl.load"),
    "an index off by one": ("tiles.py", "column = column - tap % SIDE + SIDE // 2",
                            "column = column - tap % SIDE"),
    "a counter that is not reset": ("norm.py", "tl.store(counter + tl.program_id(1), 0)",
                                    "tl.store(counter + tl.program_id(1), 1)"),
    "the skip's gradient under RESIDUAL": ("stage_train_bwd.py", "None if gates[block] == Gate.RESIDUAL else skip",
                                           "skip"),
    "biased running variance": ("norm.py", "squares / (pixels - 1)", "squares / pixels"),
}  # fmt: skip


@interpreted
@pytest.mark.parametrize("bug", BUGS)
def test_planted_bugs_are_caught(plant, bug, poisoned):
    stage, route = make_stage("basic", stride=1, blocks=3).train(), route_of([2, 2, 4])
    x = images(stage, (2, 16, 6, 6), route)
    plant(*BUGS[bug])
    with pytest.raises(AssertionError):
        check("triton", stage, x, route, DIRECT)


# ---- autograd's rules ------------------------------------------------------------------------------------------------


@pytest.fixture
def trained():
    """A short run on the kernels: its stage, x and y."""
    stage, x = make_stage("basic", stride=1, blocks=1).train().to(DEVICE), torch.rand(2, 16, 3, 3, device=DEVICE)
    x.requires_grad_()
    with use_backend("triton"):
        return stage, x, stage_train(x, specs(stage), route_of([1]), zero_unused=False)


def test_the_backward_can_run_again_and_for_several_gradients(trained):
    _, x, y = trained
    incoming = torch.randn(2, *y.shape, device=DEVICE)
    one_by_one = torch.stack([torch.autograd.grad(y, x, g, retain_graph=True)[0] for g in incoming])
    together = torch.autograd.grad(y, x, incoming, is_grads_batched=True, retain_graph=True)[0]
    assert torch.equal(together, one_by_one)


def test_what_changes_between_forward_and_backward_is_noticed(trained):
    stage, _, y = trained
    with torch.no_grad():
        stage[0].conv1.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_second_derivative_is_refused_in_a_sentence(trained):
    _, x, y = trained
    first = torch.autograd.grad(y.sum(), x, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="no second derivative; run the forward inside pathnet.use_backend"):
        first.square().sum().backward()


@pytest.mark.parametrize("pattern", ["0.conv1", "bn2.bias"])
def test_only_what_is_asked_for_gets_a_gradient(pattern):
    stage, x = make_stage("basic", stride=1, blocks=2).train().to(DEVICE), torch.rand(2, 16, 3, 3, device=DEVICE)
    whole = step("triton", stage, x)
    for name, p in stage.named_parameters():
        p.requires_grad_(pattern in name)
    part = step("triton", stage, x)
    for name, p in stage.named_parameters():
        assert (part[name] is None) != p.requires_grad, name
        assert part[name] is None or torch.equal(part[name], whole[name]), name


# ---- what PyTorch and a user see -------------------------------------------------------------------------------------


def test_the_registered_ops_pass_opcheck():
    """Compiled graphs hold stage_traced instead."""
    stage, x = make_stage("basic", blocks=1).train().to(DEVICE), torch.rand(2, 16, 4, 4, device=DEVICE)
    with Recorder() as recorder:
        step("triton", stage, x, route_of([1]))
    assert [func.name() for func, _ in recorder.calls] == [
        "pathnet::stage_train_triton_fwd", "pathnet::stage_train_triton_bwd",
    ]  # fmt: skip
    for func, args in recorder.calls:
        detached = torch.utils._pytree.tree_map_only(torch.Tensor, lambda t: t.detach().clone(), args)
        in_eager_mode = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(func, detached, test_utils=in_eager_mode)


def test_compiled_graphs_keep_their_own_op():
    net, x = PathResNet(8, num_classes=3, width=8).train(), torch.rand(2, 3, 8, 8)
    with use_backend("reference"):
        expected = net(x)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected)


def why(stage, x, route=None) -> str | None:
    return refusal("stage_train", "triton", SUPPORTS, x, specs(stage), route)


def test_what_is_refused_says_why():
    stage, x = make_stage("basic").train().to(DEVICE), stream(False).to(DEVICE)
    assert why(stage, x) is None
    for wrong, sentence in (
        (x.double(), "float32, float16 and bfloat16"),
        (x.half(), "which only autocast joins"),
        (x[:0], "no image"),
        (x[:1, :, :1, :1], "at least two values"),
        (x.to("meta"), "CUDA devices"),
    ):
        assert sentence in why(stage, wrong)
    cut = [spec._replace(residual=spec.residual[:-1]) for spec in specs(stage)]
    assert "none of those" in (refusal("stage_train", "triton", SUPPORTS, x, cut, None) or "")
    mixed = torch.nn.Sequential(*make_stage("basic"), *make_stage("bottleneck", "pad", 32, 8, 1)).train().to(DEVICE)
    assert "several forms" in why(mixed, x)
    preact = make_stage("preact").train().to(DEVICE)
    assert why(preact, x) is None and "basic blocks alone" in why(preact, x, route_of([[1, 1, 1], [1, 0, 1]]))
    stage[2].bn2.weight.data = torch.ones(32, device=DEVICE)[::2]
    assert "side by side" in why(stage, x)
    stage[1].bn1.momentum = None
    assert "momentum=None" in why(stage, x)
    with use_backend("triton"), pytest.raises(RuntimeError, match="momentum=None"):
        stage_train(x, specs(stage), None, zero_unused=False)


@interpreted
def test_on_the_cpu_nobody_gets_the_interpreter_without_asking():
    stage, x = make_stage("basic").train(), stream(False)
    assert "interpreter" in refusal("stage_train", "triton", SUPPORTS, x, specs(stage), None, loses=LOSES)
    report = explain(PathResNet(8), torch.rand(2, 3, 32, 32))
    assert all(row.backend != "triton" for row in report.blocks)
