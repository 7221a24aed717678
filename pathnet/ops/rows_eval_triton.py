"""A run of blocks in evaluation whose gates differ from image to image, by the Triton kernels: the op."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pathnet.gates import Gate
from pathnet.ops.schemas import library
from pathnet.ops.stage_train_run import run_of
from pathnet.ops.stage_train_runs import Gated, gates_of_rows
from pathnet.ops.triton_calls import channels_last, dense, is_channels_last, product_precision


def rows_eval_triton(x: Tensor, blocks: Sequence[Gated]) -> Tensor:
    """x [N, C, H, W] through basic blocks whose shortcut is the identity; a block runs the images that are not OFF."""
    run = run_of([(spec, step._replace(gate=Gate.FULL)) for spec, step in blocks])
    norms = [
        t for i in range(len(run.counters)) for t in (*run.norms[2 * i : 2 * i + 2], *run.running[2 * i : 2 * i + 2])
    ]
    y = torch.ops.pathnet.rows_eval_triton(
        channels_last(x), gates_of_rows(blocks, len(x)), [dense(weight) for weight in run.weights], norms,
        run.layout.scales, run.layout.constants[::2], product_precision(),
    )  # fmt: skip
    return y if is_channels_last(x) else y.contiguous()


def _eval(x, gates, weights, norms, scales, eps, precision):
    from pathnet.kernels.rows_eval import rows_eval
    from pathnet.kernels.stage_eval import eval_norms

    with torch.cuda.device_of(x):
        return rows_eval(x, gates, weights, eval_norms(norms, scales, eps), precision)


for _key in ("CPU", "CUDA"):
    library.impl("rows_eval_triton", _eval, _key)
torch.library.register_fake("pathnet::rows_eval_triton", lambda x, *rest: torch.empty_like(x), lib=library)
