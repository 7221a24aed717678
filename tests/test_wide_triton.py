"""Tensors of more than 2^31 elements: the last image of a vast batch gets what it gets alone.

The batch lies in memory that is reserved and not committed, so that only the pages of its last image exist. Before it
as much is reserved, where offsets of 32 bits lead: there they read zeros and do no harm.
"""

from __future__ import annotations

import builtins
import mmap

import pytest
import torch
from torch import Tensor
from triton.runtime import interpreter
from triton_cases import interpreted

from pathnet import Gate
from pathnet.kernels import catalogue
from pathnet.kernels.launch import Launch, run
from pathnet.kernels.partial_sums import sum_slots_pass
from pathnet.kernels.passes import wide

pytestmark = interpreted

CHANNELS, SIDE = 16, 16
IMAGE = CHANNELS * SIDE * SIDE
IMAGES = 2**31 // IMAGE + 1
NORESERVE = 0x4000  # of Linux' mmap
LATE = {  # what the last program of all writes
    "slots",
    "counter",
    "state_out",
    "slopes_in",
    "gradients_in",
    "running_mean",
    "running_var",
    "batches",
}
APART = {"weight_gradient", "sum_slots", "first_norm"}  # two have tests of their own; the third writes sums alone
RUNS = {
    "basic": lambda n: catalogue.meta_run(CHANNELS, [Gate.FULL, Gate.FORWARD, Gate.FULL], images=n, side=SIDE),
    "preact": lambda n: catalogue.meta_run(CHANNELS, [Gate.FULL, Gate.FULL], images=n, side=SIDE, form="preact"),
    "rebuilt": lambda n: rebuilding(
        catalogue.meta_run(CHANNELS, [Gate.FULL, Gate.FULL], images=n, side=SIDE, form="recomputed_bottleneck")
    ),
    "evaluation": lambda n: catalogue.meta_eval(CHANNELS, 1, images=n, side=SIDE),
    "path": lambda n: catalogue.meta_path(CHANNELS, images=n, side=SIDE),
}


def rebuilding(launches: list[Launch]) -> list[Launch]:
    """Those that read or write the wide values of bottlenecks and rebuild one; the others of the run are no others."""
    return [launch for launch in launches if "rebuilt" in (name := launch.kernel.fn.__name__) and "weight" not in name]


def vast(count: int, dtype: torch.dtype) -> Tensor:
    """Zeros [count], of which no page exists yet, behind 2^31 others."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE
    memory = mmap.mmap(-1, (2**31 + count) * dtype.itemsize, flags=flags)
    return torch.frombuffer(memory, dtype=dtype)[2**31 :]


def flat(tensor: Tensor) -> Tensor:
    """All its elements as they lie in memory, which has no gaps."""
    return tensor.as_strided((tensor.numel(),), (1,))


@pytest.fixture
def last_programs(monkeypatch):
    """Of a large grid, the interpreter runs the programs of the last image alone, and copies no arguments."""

    def few(*bounds):
        large = len(bounds) == 1 and bounds[0] > 2**16
        return builtins.range(bounds[0] - bounds[0] // IMAGES, bounds[0]) if large else builtins.range(*bounds)

    monkeypatch.setattr(interpreter, "range", few, raising=False)
    monkeypatch.setattr(interpreter.GridExecutor, "_restore_args_dev", lambda *args: None)


def filled(big: Launch, small: Launch) -> tuple[Launch, Launch]:
    """Both launches with tensors: random ones for the small one, which stand at the end of those of the big one."""
    pairs = {}
    for name, like in small.tensors.items():
        own = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype)
        values = (
            torch.rand(own.shape) - 0.3 * ("var" not in name)
            if own.is_floating_point()
            else torch.randint(0, 100, own.shape)
        )
        own.copy_(values if name != "counter" else torch.zeros(()))
        other = big.tensors[name]
        if other.numel() == own.numel():
            pairs[name] = own.clone(), own
            continue
        whole = vast(other.numel(), other.dtype)
        whole[-own.numel() :] = flat(own)
        pairs[name] = whole.as_strided(other.shape, other.stride()), own
    return tuple(
        launch._replace(arguments=launch.arguments | {name: pair[place] for name, pair in pairs.items()})
        for place, launch in enumerate((big, small))
    )


def differing(big: Launch, small: Launch) -> list[str]:
    """The tensors whose last image the big launch writes otherwise, LATE ones apart."""
    run(big)
    run(small)
    written = [name for name in small.writes if name not in LATE]
    ends = {name: flat(big.tensors[name])[-small.tensors[name].numel() :] for name in written}
    assert written
    return [name for name, end in ends.items() if not torch.equal(end, flat(small.tensors[name]))]


@pytest.mark.parametrize("kind", RUNS)
def test_the_last_image_of_a_vast_batch_is_as_alone(kind, last_programs):
    seen = set()
    for big, small in zip(RUNS[kind](IMAGES), RUNS[kind](1), strict=True):
        name = big.kernel.fn.__name__
        own = name, big.constants.get("PROLOGUE")
        if own in seen or name in APART:
            continue
        seen.add(own)
        assert big.constants["WIDE"] and not small.constants["WIDE"], own
        assert differing(*filled(big, small)) == [], own
        narrow = big._replace(constants=big.constants | {"WIDE": False})
        assert differing(*filled(narrow, small)), f"{own} with offsets of 32 bits"
    assert seen


def of_one_slot(launch: Launch, slots: int) -> Launch:
    """A weight gradient whose slots have one image each, or a tensor like it without memory."""
    partial = torch.empty((slots, launch.arguments["slot_size"]), device="meta")
    arguments = launch.arguments | {"pixels_of_slot": SIDE * SIDE, "partial": partial}
    return launch._replace(arguments=arguments, grid=(slots, *launch.grid[1:]))


@pytest.mark.parametrize(
    "form, kernel", [("basic", "weight_gradient"), ("recomputed_bottleneck", "weight_gradient_of_rebuilt")]
)
def test_weight_gradients_of_a_vast_batch(form, kernel, last_programs):
    runs = (catalogue.meta_run(CHANNELS, [Gate.FULL], images=n, side=SIDE, form=form) for n in (IMAGES, 1))
    big, small = (
        next(of_one_slot(each, images) for each in run if each.kernel.fn.__name__ == kernel)
        for run, images in zip(runs, (IMAGES, 1), strict=True)
    )
    assert big.constants["WIDE"] and differing(*filled(big, small)) == []
    assert differing(*filled(big._replace(constants=big.constants | {"WIDE": False}), small)) == ["partial"]


def test_a_sum_of_vast_slots(last_programs):
    size, slots = 2**30, 3
    partial, total = vast(slots * size, torch.float32).view(slots, size), vast(size, torch.float32)
    partial[:, -5:] = torch.arange(15.0).view(slots, 5)
    launch = sum_slots_pass(partial, total)
    assert launch.constants["WIDE"]
    run(launch)
    assert total[-5:].tolist() == [15.0, 18.0, 21.0, 24.0, 27.0]


def test_which_tensors_are_wide():
    like = [torch.empty(count, device="meta") for count in (2**31, 2**31 - 100, 2**31 - 2**12)]
    assert [wide(t) for t in like] == [True, True, False], "the last program of the second counts past the limit"
    assert wide(None, *like) and not wide(None, like[2])
