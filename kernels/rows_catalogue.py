"""The launches of runs whose gates differ from image to image, on tensors without memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pathnet.gates import Gate
from pathnet.kernels.block_run import BlockRun
from pathnet.kernels.launch import Launch, observed
from pathnet.kernels.passes import Norm
from pathnet.kernels.rows_eval import rows_eval
from pathnet.kernels.rows_train_bwd import rows_train_bwd
from pathnet.kernels.rows_train_fwd import rows_train_fwd
from pathnet.kernels.stage_eval import EvalNorm

SIDE = 32
Gates = Sequence[Sequence[int]]  # [images, blocks]


def meta_rows_run(channels: int, gates: Gates, dtype: torch.dtype, precision: str = "tf32") -> list[Launch]:
    """A training step with batch statistics, weights in float32."""
    x, weights = _tensors(channels, gates, dtype)
    norms = [
        Norm(*_vectors(channels), torch.empty((), dtype=torch.int64, device="meta"), 1e-5, 0.1, 1.0, True, True)
        for _ in weights
    ]
    table = np.array(gates, np.int8)
    trains = ((table == Gate.FULL) | (table == Gate.RESIDUAL)).any(0)
    blocks = BlockRun(weights, norms, [1] * table.shape[1], [int(Gate.FULL)] * table.shape[1], [], precision)
    with observed() as launches:
        y, kept = rows_train_fwd(x, table, blocks)
        rows_train_bwd(y, x, table, kept.flat(), blocks, True, [bool(trains[i // 2]) for i in range(len(weights))])
    return launches


def meta_rows_eval(channels: int, gates: Gates, dtype: torch.dtype, precision: str = "tf32") -> list[Launch]:
    """An evaluation."""
    x, weights = _tensors(channels, gates, dtype)
    norms = [EvalNorm(*_vectors(channels), 1e-5, 1.0) for _ in weights]
    with observed() as launches:
        rows_eval(x, torch.tensor(gates), weights, norms, precision)
    return launches


def _tensors(channels: int, gates: Gates, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    with torch.device("meta"):
        x = torch.empty((len(gates), channels, SIDE, SIDE), dtype=dtype, memory_format=torch.channels_last)
        return x, [torch.empty(channels, channels, 3, 3) for _ in range(2 * len(gates[0]))]


def _vectors(channels: int) -> tuple[Tensor, ...]:
    return torch.empty(4, channels, device="meta").unbind(0)
