"""Every launch that training can make, one for each kernel and setting: what `pathnet kernels` compiles.

Launches that differ in what only leaves code out, or in numbers that only stand in it, are one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch

from pathnet.gates import Gate
from pathnet.kernels.block_run import BlockRun, conv_shapes
from pathnet.kernels.conv_forms import LEAST, NEVER, Chip
from pathnet.kernels.launch import Launch, observed
from pathnet.kernels.passes import Norm
from pathnet.kernels.path_bwd import path_bwd
from pathnet.kernels.rows_catalogue import meta_rows_eval, meta_rows_run
from pathnet.kernels.stage_eval import EvalNorm, stage_eval
from pathnet.kernels.stage_train_bwd import stage_train_bwd
from pathnet.kernels.stage_train_fwd import kept_tensors, stage_train_fwd
from pathnet.kernels.stage_train_preact_bwd import stage_train_preact_bwd
from pathnet.kernels.stage_train_preact_fwd import kept_tensors as kept_of_preact
from pathnet.kernels.stage_train_preact_fwd import stage_train_preact_fwd

CHANNELS = (16, 32, 64)  # each block size of the table; 64 are several blocks where a step or a program takes 32
DTYPES = {
    "float16": (torch.float16, "tf32"),
    "bfloat16": (torch.bfloat16, "tf32"),
    "tf32": (torch.float32, "tf32"),
    "ieee": (torch.float32, "ieee"),
}  # name -> dtype of the activations, and how float32 products are made
GATES = (Gate.FULL, Gate.FORWARD, Gate.FORWARD, Gate.FULL, Gate.FROZEN, Gate.RESIDUAL, Gate.FORWARD, Gate.FULL)
IMAGES, SIDE = 128, 32
ONLY_NUMBERS = {"IN", "OUT", "CHANNELS", "BATCH_STATS", "MOVES"}
ROWS = [[Gate.FORWARD, Gate.FULL, Gate.FORWARD], [Gate.OFF] * 3, [Gate.FULL, Gate.OFF, Gate.OFF]] * (IMAGES // 3)
DEPTHS = {"basic": 2, "preact": 2, "bottleneck": 3, "preact_bottleneck": 3, "recomputed_bottleneck": 3}  # convolutions
TRAINING = {
    "basic": (stage_train_fwd, stage_train_bwd, kept_tensors),
    "preact": (stage_train_preact_fwd, stage_train_preact_bwd, kept_of_preact),
    "bottleneck": (stage_train_fwd, stage_train_bwd, kept_tensors),
    "preact_bottleneck": (stage_train_preact_fwd, stage_train_preact_bwd, kept_of_preact),
    "recomputed_bottleneck": (stage_train_fwd, stage_train_bwd, partial(kept_tensors, recomputes=True)),
}  # the forward and the backward of a run, and what is kept between them


def meta_run(
    channels: int, gates: Sequence[int], dtype: str = "float16", inputs: int | None = None, stride: int = 1,
    batch_stats: bool = True, images: int = IMAGES, side: int = SIDE, form: str = "basic", chip: Chip | None = None,
) -> list[Launch]:  # fmt: skip
    """The launches of a training step of a run of blocks on tensors without memory, weights in float32.

    `channels` are those of the blocks' values, 4 times those inside of a bottleneck.
    """
    first, depth = channels if inputs is None else inputs, DEPTHS[form]
    stored, precision = DTYPES[dtype]
    with torch.device("meta"):
        weights = [torch.empty(shape) for shape in _weight_shapes(form, channels, first, len(gates))]
        norms = [
            Norm(*torch.empty(4, count).unbind(0), torch.empty((), dtype=torch.int64), 1e-5, 0.1, 1.0, batch_stats,
                 batch_stats and gates[i // depth] != Gate.FROZEN)
            for i, count in enumerate(len(w) if "preact" not in form else w.shape[1] for w in weights)
        ]  # fmt: skip
        x = torch.empty((images, first, side, side), dtype=stored, memory_format=torch.channels_last)
    strides = [stride] + [1] * (len(gates) - 1)
    blocks = BlockRun(weights, norms, strides, [int(gate) for gate in gates], [1.0] * len(gates), precision, chip,
                      recomputes=form == "recomputed_bottleneck")  # fmt: skip
    needs_weights = [gates[i // depth] in (Gate.FULL, Gate.RESIDUAL) for i in range(len(weights))]
    skip = None if stride == 1 else x.new_empty((images, channels, -(-side // stride), -(-side // stride)))
    forward, backward, _ = TRAINING[form]
    with observed() as launches:
        y, kept = forward(x, skip, blocks)
        backward(y, x, kept, blocks, skip is not None, True, skip is not None, needs_weights)
    return launches


def meta_kept(
    channels: int, gates: Sequence[int], images: int = IMAGES, side: int = SIDE, form: str = "basic"
) -> list[torch.Tensor]:
    """What such a run, in float16, keeps for its backward beside its own input."""
    with torch.device("meta"):
        weights = [torch.empty(shape) for shape in _weight_shapes(form, channels, channels, len(gates))]
        x = torch.empty((images, channels, side, side), dtype=torch.float16, memory_format=torch.channels_last)
    shapes = conv_shapes(weights, [1] * len(gates), images, side, side)
    return [t for t in TRAINING[form][2](gates, x, shapes) if t is not None]


def _weight_shapes(form: str, channels: int, inputs: int, blocks: int) -> Iterator[tuple[int, int, int, int]]:
    for block in range(blocks):
        first = inputs if block == 0 else channels
        if "bottleneck" in form:
            inner = channels // 4
            yield from ((inner, first, 1, 1), (inner, inner, 3, 3), (channels, inner, 1, 1))
        else:
            yield from ((channels, first, 3, 3), (channels, channels, 3, 3))


def meta_eval(
    channels: int, blocks: int, dtype: str = "float16", inputs: int | None = None, stride: int = 1,
    images: int = IMAGES, side: int = SIDE, form: str = "basic",
) -> list[Launch]:  # fmt: skip
    """The launches of an evaluation of a run of blocks, as `meta_run`."""
    first = channels if inputs is None else inputs
    stored, precision = DTYPES[dtype]
    with torch.device("meta"):
        weights = [torch.empty(shape) for shape in _weight_shapes(form, channels, first, blocks)]
        norms = [EvalNorm(*torch.empty(4, len(weight)).unbind(0), 1e-5, 1.0) for weight in weights]
        x = torch.empty((images, first, side, side), dtype=stored, memory_format=torch.channels_last)
    skip = None if stride == 1 else x.new_empty((images, channels, -(-side // stride), -(-side // stride)))
    with observed() as launches:
        stage_eval(x, skip, weights, norms, [stride] + [1] * (blocks - 1), precision)
    return launches


def meta_path(channels: int, dtype: str = "float16", images: int = IMAGES, side: int = SIDE) -> list[Launch]:
    """The launches of a gradient back along a path of two convolutions, and of one of none, as `meta_run`."""
    stored, precision = DTYPES[dtype]
    with torch.device("meta"):
        gradient = torch.empty((images, channels, side, side), dtype=stored, memory_format=torch.channels_last)
        weights = [torch.empty(channels, channels, 3, 3) for _ in range(2)]
        masks = [torch.empty((images, -(-channels // 16), side, side), dtype=torch.int16) for _ in range(3)]
    with observed() as launches:
        path_bwd(gradient, weights, masks, precision)
        path_bwd(gradient, [], masks, precision)
    return launches


def catalogue(channels: Sequence[int], dtypes: Sequence[str]) -> list[Launch]:
    """One launch of each distinct kernel and setting."""
    distinct: dict[tuple, Launch] = {}
    for launch in _all(channels, dtypes):
        if launch.kernel is not None:
            distinct.setdefault(_setting(launch), launch)
    return list(distinct.values())


def _setting(launch: Launch) -> tuple:
    """What the machine code of a launch depends on.

    Numbers of channels stand in it as constants alone, but where a loop over them has one step or two, and is unrolled.
    A norm that takes its running statistics, or does not move them, has less code.
    """
    rest = {name: value for name, value in launch.constants.items() if name not in ONLY_NUMBERS}
    return launch.kernel.fn.__name__, str(rest), str(_dtypes(launch)), launch.warps, _steps(launch.constants)


def _steps(constants: dict[str, Any]) -> tuple[int, ...]:
    """Of the loops of a 1x1 convolution forward and backward; three stand for more."""
    if constants.get("SIDE") != 1 or "BLOCK_K" not in constants:
        return ()
    return tuple(min(3, -(-constants[side] // constants["BLOCK_K"])) for side in ("IN", "OUT"))


def _all(channels: Sequence[int], dtypes: Sequence[str]) -> Iterator[Launch]:
    for dtype in dtypes:
        for width in channels:
            yield from meta_run(width, GATES, dtype)
            yield from meta_run(width, [Gate.FULL, Gate.FULL], dtype, inputs=width // 2, stride=2)
            yield from meta_eval(width, 1, dtype)
            yield from meta_eval(width, 1, dtype, inputs=width // 2, stride=2)
            yield from meta_path(width, dtype)
            yield from meta_rows_eval(width, ROWS, *DTYPES[dtype])
            yield from meta_rows_run(width, ROWS, *DTYPES[dtype])
            yield from _other_forms(width, dtype)


def _other_forms(width: int, dtype: str) -> Iterator[Launch]:
    """Pre-activation blocks, bottlenecks whose 3x3 convolution has `width` channels, and the separate-pass form, all
    trained."""
    yield from meta_run(width, [Gate.FULL, Gate.RESIDUAL, Gate.FULL], dtype, form="preact")
    yield from meta_run(width, [Gate.FULL], dtype, inputs=width // 2, stride=2, form="preact")
    yield from meta_run(4 * width, [Gate.FULL, Gate.FULL], dtype, form="bottleneck")
    yield from meta_run(4 * width, [Gate.FULL], dtype, stride=2, form="bottleneck")
    for inner in (width, 2 * width):  # rebuilt where they are few, and made anew
        yield from meta_run(4 * inner, [Gate.FULL, Gate.FORWARD, Gate.FORWARD, Gate.FULL], dtype,
                            form="recomputed_bottleneck")  # fmt: skip
    yield from meta_run(4 * width, [Gate.FULL, Gate.FULL], dtype, form="preact_bottleneck")
    yield from meta_run(4 * width, [Gate.FULL], dtype, stride=2, form="preact_bottleneck")
    yield from meta_eval(4 * width, 1, dtype, form="bottleneck")
    for chip in (chip for chip, least in LEAST.items() if least is not NEVER):
        yield from meta_run(width, GATES, dtype, chip=chip)
        yield from meta_run(width, [Gate.FULL, Gate.FULL], dtype, inputs=width // 2, stride=2, chip=chip)
        yield from meta_run(width, [Gate.FULL, Gate.RESIDUAL, Gate.FULL], dtype, form="preact", chip=chip)
        yield from meta_run(4 * width, [Gate.FULL, Gate.FULL], dtype, form="bottleneck", chip=chip)


def _dtypes(launch: Launch) -> list[torch.dtype]:
    return [value.dtype for value in launch.arguments.values() if isinstance(value, torch.Tensor)]
