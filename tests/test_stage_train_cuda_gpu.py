"""stage_train by the CUDA kernels on a GPU: the cases of the host, whole stages, against float64, eager and Triton."""

from __future__ import annotations

import pytest
import torch
from cases import double, specs
from cuda_train_cases import CASES, FORMS, TF32, TF32_CASES, case, differences
from graph_cases import captured, gradients
from training_cases import check, route_of, step
from triton_cases import DIRECT, halves

from pathnet import PathResNet, Paths, profile, use_backend
from pathnet.ops.stage_train import stage_train
from pathnet.ops.stage_train_cuda import supports_cuda

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    pytest.mark.usefixtures("tf32_products", "poisoned"),
]
STAGES = [(128, 16, 32, 32), (128, 32, 16, 16), (128, 64, 8, 8)]  # of a CIFAR ResNet


def on_gpu(form: str, dtype: torch.dtype, shape, blocks: int):
    stage, x = (each.cuda() for each in case(form, dtype, shape, blocks))
    if (reason := supports_cuda(x, specs(stage))) and "KiB" in reason:
        pytest.skip(reason)  # 64 channels on 8.6 and 8.9
    return stage, x


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype, shape, gates", CASES, ids=str)
def test_values(form, dtype, shape, gates):
    stage, x = on_gpu(form, dtype, shape, len(gates))
    check("cuda", stage, x, route_of(gates, torch.linspace(0.5, 1.5, len(gates))), DIRECT)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape, gates", TF32_CASES, ids=str)
def test_tf32(form, shape, gates):
    stage, x = on_gpu(form, torch.float32, shape, len(gates))
    check("cuda", stage, x, route_of(gates), TF32, (halves(stage, torch.bfloat16), x.bfloat16()))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", STAGES, ids=str)
def test_whole_stages_are_as_near_to_float64_as_triton(form, dtype, shape):
    """Each errs at most twice what eager PyTorch errs, plus one rounding, and so they agree with one another."""
    gates = [1, 2, 1, 3, 4]
    stage, x = on_gpu(form, dtype, shape, len(gates))
    for backend in ("cuda", "triton"):
        check(backend, stage, x, route_of(gates), DIRECT)


@pytest.mark.parametrize("form", FORMS)
def test_statistics_chosen_batch_norm_by_batch_norm(form):
    stage, x = on_gpu(form, torch.bfloat16, (3, 16, 14, 15), 2)
    stage[0].bn1.eval(), stage[1].bn2.eval()
    check("cuda", stage, x, None, DIRECT)
    check("cuda", stage.eval(), x, route_of([4, 1]), DIRECT)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", STAGES, ids=str)
def test_equal_steps_give_equal_bits(form, shape):
    """On another stream, too, which has its own counter; 256 thread blocks arrive in any order."""
    stage, x = on_gpu(form, torch.float16, shape, 3)
    first = step("cuda", stage, x, route_of([1, 2, 1]))
    for _ in range(10):
        assert differences(step("cuda", stage, x, route_of([1, 2, 1])), first) == []
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        other = step("cuda", stage, x, route_of([1, 2, 1]))
    stream.synchronize()
    assert differences(other, first) == []


@pytest.mark.parametrize("form", FORMS)
def test_a_captured_step_can_be_replayed(form):
    stage, x = on_gpu(form, torch.bfloat16, (8, 16, 16, 16), 3)
    for module in stage.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.0  # running statistics stay, so that every replay is the same step
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    expected, route = step("cuda", stage, x, route_of([1, 2, 1])), route_of([1, 2, 1])

    def training_step():
        with use_backend("cuda"):
            y = stage_train(x, specs(stage), route, zero_unused=False)
        return y, gradients(y, x, stage)

    graph, (y, grads) = captured(training_step)
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    names = ["x", *dict(stage.named_parameters())]
    assert torch.equal(y, expected["y"])
    for name, grad in zip(names, grads, strict=True):
        assert (grad is None) == (expected[name] is None), name
        assert grad is None or torch.equal(grad, expected[name]), name


@pytest.mark.parametrize("form", FORMS)
def test_a_net_under_autocast(form):
    """ResNet-20 from a float32 net: blocks that stride run elsewhere, the others here; 3 blocks of each stage."""
    net = PathResNet(20, block=form).cuda().train()
    x, paths = torch.randn(128, 3, 32, 32, device="cuda"), Paths.backward(9, [0, 2, 4, 8])
    truth = double(net)(x.double(), paths)
    outputs = {}
    for backend in ("cuda", "reference"):
        with use_backend(backend), torch.autocast("cuda", torch.float16):
            outputs[backend] = net(x, paths)
    errors = {name: float((y.double() - truth).norm() / truth.norm()) for name, y in outputs.items()}
    assert errors["cuda"] <= DIRECT * errors["reference"] + torch.finfo(torch.float16).eps
    with use_backend("cuda"), torch.autocast("cuda", torch.float16):
        kernels = profile(net, x, paths, backward=True).kernels
    launched = sum(kernel.launches for name, kernel in kernels.items() if "pathnet.cuda" in name)
    of_blocks = {1: 4, 2: 2}
    gates = [[1, 2, 1], [1, 2], [2, 1]]  # of the blocks that keep their shape
    assert launched == sum(of_blocks[gate] for run in gates for gate in run) + 3 * len(gates)
