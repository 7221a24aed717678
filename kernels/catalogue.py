"""Every launch that training can make, one for each kernel and setting: what `pathnet kernels` compiles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from pathnet.gates import Gate
from pathnet.kernels.launch import Launch, observed
from pathnet.kernels.passes import Norm
from pathnet.kernels.rows_catalogue import meta_rows_eval, meta_rows_run
from pathnet.kernels.stage_eval import EvalNorm, stage_eval
from pathnet.kernels.stage_train_bwd import stage_train_bwd
from pathnet.kernels.stage_train_fwd import BlockRun, stage_train_fwd

CHANNELS = (16, 32, 64, 128)  # each block size of the table, and one with several blocks of channels
DTYPES = {
    "float16": (torch.float16, "tf32"),
    "bfloat16": (torch.bfloat16, "tf32"),
    "tf32": (torch.float32, "tf32"),
    "ieee": (torch.float32, "ieee"),
}  # name -> dtype of the activations, and how float32 products are made
GATES = (Gate.FULL, Gate.FORWARD, Gate.FORWARD, Gate.FULL, Gate.FROZEN, Gate.RESIDUAL, Gate.FORWARD, Gate.FULL)
IMAGES, SIDE = 128, 32
ROWS = [[Gate.FORWARD, Gate.FULL, Gate.FORWARD], [Gate.OFF] * 3, [Gate.FULL, Gate.OFF, Gate.OFF]] * (IMAGES // 3)


def meta_run(
    channels: int, gates: Sequence[int], dtype: str = "float16", inputs: int | None = None, stride: int = 1,
    batch_stats: bool = True, images: int = IMAGES, side: int = SIDE,
) -> list[Launch]:  # fmt: skip
    """The launches of a training step of a run of blocks on tensors without memory, weights in float32."""
    first = channels if inputs is None else inputs
    stored, precision = DTYPES[dtype]
    with torch.device("meta"):
        weights = [torch.empty(channels, first if i == 0 else channels, 3, 3) for i in range(2 * len(gates))]
        norms = [
            Norm(*torch.empty(4, channels).unbind(0), torch.empty((), dtype=torch.int64), 1e-5, 0.1, 1.0, batch_stats,
                 batch_stats and gates[i // 2] != Gate.FROZEN)
            for i in range(2 * len(gates))
        ]  # fmt: skip
        x = torch.empty((images, first, side, side), dtype=stored, memory_format=torch.channels_last)
    strides = [stride] + [1] * (len(gates) - 1)
    blocks = BlockRun(weights, norms, strides, [int(gate) for gate in gates], precision)
    needs_weights = [gates[i // 2] in (Gate.FULL, Gate.RESIDUAL) for i in range(len(weights))]
    skip = None if stride == 1 else x.new_empty((images, channels, -(-side // stride), -(-side // stride)))
    with observed() as launches:
        y, kept = stage_train_fwd(x, skip, blocks)
        stage_train_bwd(y, x, kept, blocks, skip is not None, True, skip is not None, needs_weights)
    return launches


def meta_eval(channels: int, blocks: int, dtype: str = "float16", inputs: int | None = None, stride: int = 1,
              images: int = IMAGES, side: int = SIDE) -> list[Launch]:  # fmt: skip
    """The launches of an evaluation of a run of blocks, as `meta_run`."""
    first = channels if inputs is None else inputs
    stored, precision = DTYPES[dtype]
    with torch.device("meta"):
        weights = [torch.empty(channels, first if i == 0 else channels, 3, 3) for i in range(2 * blocks)]
        norms = [EvalNorm(*torch.empty(4, channels).unbind(0), 1e-5, 1.0) for _ in range(2 * blocks)]
        x = torch.empty((images, first, side, side), dtype=stored, memory_format=torch.channels_last)
    skip = None if stride == 1 else x.new_empty((images, channels, -(-side // stride), -(-side // stride)))
    with observed() as launches:
        stage_eval(x, skip, weights, norms, [stride] + [1] * (blocks - 1), precision)
    return launches


def catalogue(channels: Sequence[int], dtypes: Sequence[str]) -> list[Launch]:
    """One launch of each distinct kernel and setting."""
    distinct: dict[tuple, Launch] = {}
    for launch in _all(channels, dtypes):
        key = launch.kernel.fn.__name__, str(launch.constants), str(_dtypes(launch))
        distinct.setdefault(key, launch)
    return list(distinct.values())


def _all(channels: Sequence[int], dtypes: Sequence[str]) -> Iterator[Launch]:
    for dtype in dtypes:
        for width in channels:
            yield from meta_run(width, GATES, dtype)
            yield from meta_run(width, [Gate.FULL, Gate.FULL], dtype, inputs=width // 2, stride=2)
            yield from meta_run(width, [Gate.FORWARD, Gate.FULL], dtype, batch_stats=False)
            yield from meta_eval(width, 1, dtype)
            yield from meta_eval(width, 1, dtype, inputs=width // 2, stride=2)
            yield from meta_rows_eval(width, ROWS, *DTYPES[dtype])
            yield from meta_rows_run(width, ROWS, *DTYPES[dtype])


def _dtypes(launch: Launch) -> list[torch.dtype]:
    return [value.dtype for value in launch.arguments.values() if isinstance(value, torch.Tensor)]
