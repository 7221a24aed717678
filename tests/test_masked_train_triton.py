"""Gates on the device: one sequence of launches for all gates, with values and gradients as gates on the host give."""

from __future__ import annotations

import pytest
import torch
from cases import Recorder, make_stage, specs
from training_cases import route_of, step
from triton_cases import DEVICE, interpreted, on_device, requests

from pathnet.kernels.launch import observed, run
from pathnet.ops.masked_train_triton import masked_train_triton
from pathnet.profile import count

pytestmark = on_device

SCALES = [1.0, -0.5, 2.0]
GATES = [[0, 1, 2], [2, 0, 1], [0, 0, 0]]


@pytest.fixture
def stage():
    return make_stage("basic", stride=1, blocks=len(SCALES)).train().to(DEVICE)


@pytest.fixture
def x():
    x = torch.randn(2, 16, 4, 5, device=DEVICE).abs()
    return x.contiguous(memory_format=torch.channels_last).requires_grad_()


def on_the_device(gates):
    return torch.tensor(gates, dtype=torch.int8, device=DEVICE)


def masked_step(stage, x, gates) -> dict[str, torch.Tensor]:
    """As `step`, but of the stage itself and x itself."""
    y = masked_train_triton(x, specs(stage), gates, SCALES)
    incoming = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).sin().view(y.shape).to(y.device)
    grads = torch.autograd.grad(y, [x, *stage.parameters()], incoming)
    return {"y": y.detach(), **dict(zip(["x", *dict(stage.named_parameters())], grads, strict=True))}


def test_one_sequence_of_launches_serves_all_gates(stage, x, poisoned):
    """It is recorded once, and launched again after the gates have changed where they stand."""
    start = {name: buffer.clone() for name, buffer in stage.named_buffers()}
    with observed() as launches:
        got = masked_step(stage, x, on_the_device([1, 1, 1]))
    recorded = list(launches)
    for gates in GATES:
        stage.load_state_dict(start, strict=False)
        expected = step("triton", stage, x, route_of(gates, SCALES))
        recorded[0].arguments["gates"].copy_(on_the_device(gates))
        for launch in recorded:
            if "gradients_in" in launch.arguments:
                launch.arguments["gradients_in"].zero_()  # as the backward does before its launches
        for launch in recorded:
            run(launch)
        for name, tensor in expected.items():
            found = got[name] if name in got else stage.get_buffer(name)
            torch.testing.assert_close(found, torch.zeros_like(found) if tensor is None else tensor, msg=name)


@interpreted
def test_a_block_that_is_off_moves_no_byte(stage, x):
    with observed() as launches, requests(launches) as counted:
        masked_step(stage, x, on_the_device([1, 0, 2]))
    shut = [index for index, launch in enumerate(launches) if launch.gate is not None and not launch.gate.item()]
    assert len(shut) == 3 + 2 * 5 + 3  # forward of one block, backward of two, and what ends other runs
    assert not any(size for (index, _, _), size in counted.items() if index in shut)
    assert sum(counted.values()) > 0


def test_a_forward_alone_in_the_formats_of_memory(stage, x):
    plain = x.detach().contiguous()
    y = masked_train_triton(plain, specs(stage.eval()), on_the_device([1, 0, 2]), SCALES)
    assert y.is_contiguous()
    assert torch.equal(y, masked_train_triton(x, specs(stage), on_the_device([1, 0, 2]), SCALES))


def test_profile_counts_the_same_launches_for_all_gates(stage, x):
    class Masked(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = stage

        def forward(self, x, gates):
            return masked_train_triton(x, specs(stage), gates, SCALES)

    full, off = (count(Masked(), x.detach(), on_the_device([gate] * 3), backward=True) for gate in (1, 0))
    launches = [
        {name: kernel.launches for name, kernel in each.kernels.items() if "triton" in name} for each in (full, off)
    ]
    assert launches[0] == launches[1] and launches[0]["pathnet.triton masked: forward conv1"] == 3
    assert full.saved == off.saved


def test_the_registered_ops_pass_opcheck(stage, x):
    with Recorder() as recorder:
        masked_step(stage, x, on_the_device([1, 0, 2]))
    assert [func.name() for func, _ in recorder.calls] == [
        "pathnet::masked_train_triton_fwd", "pathnet::masked_train_triton_bwd",
    ]  # fmt: skip
    for func, args in recorder.calls:
        detached = torch.utils._pytree.tree_map_only(torch.Tensor, lambda t: t.detach().clone(), args)
        in_eager_mode = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(func, detached, test_utils=in_eager_mode)


def test_what_is_refused_says_why(stage, x):
    for gates in (on_the_device([1, 1]), on_the_device([1, 1, 1]).int()):
        with pytest.raises(ValueError, match=r"gates must be int8 \[3\]"):
            masked_train_triton(x, specs(stage), gates, SCALES)
    with pytest.raises(ValueError, match="not the identity"):
        masked_train_triton(x, specs(make_stage("basic").to(DEVICE)), on_the_device([1, 1, 1]), SCALES)
