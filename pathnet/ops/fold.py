"""Batch norms folded into the convolutions before them, where nothing is to be trained."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pathnet import backend, extension
from pathnet.reference.layers import Conv, Layer, Norm, Relu


def folded(layers: Sequence[Layer], x: Tensor) -> tuple[Layer, ...]:
    """`layers` for input x, with each batch norm of running statistics folded into its convolution.

    They stay as they are where a gradient may flow, off the CPU, in other dtypes than float32 and in the reference,
    which is all there is without the extension.
    """
    plain = tuple(layers)
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or backend.forced() == "reference":
        return plain
    if not extension.available():
        return plain
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return plain
    result: list[Layer] = []
    for layer in plain:
        before = result[-1] if result else None
        if isinstance(layer, Norm) and isinstance(before, Conv) and _fits(before, layer):
            result[-1] = _fold(before, layer)
        elif isinstance(layer, Relu) and isinstance(before, Conv):
            result.append(Relu(inplace=True))  # what the convolution made is nobody else's
        else:
            result.append(layer)
    return tuple(result)


def _fits(conv: Conv, norm: Norm) -> bool:
    tensors = (conv.weight, *norm[:4])
    return not norm.batch_stats and all(t is not None and t.dtype == torch.float32 for t in tensors)


def _fold(conv: Conv, norm: Norm) -> Conv:
    weight, bias, mean, var = (t.double() for t in norm[:4] if t is not None)
    scale = weight * torch.rsqrt(var + norm.eps)
    inner = torch.zeros_like(bias) if conv.bias is None else conv.bias.double()
    return conv._replace(
        weight=(conv.weight * scale.view(-1, 1, 1, 1)).float(), bias=(bias + (inner - mean) * scale).float()
    )
