"""Counts what eager PyTorch launches on a GPU, and the bytes that each launch touches, on tensors without memory.

Launches are those of mixed precision in channels-last: a cast for each weight and its gradient, one for each counter
of a batch norm, two for the backward of a convolution (data and weights), which both read the gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

SECOND_PASS = {"native_batch_norm": "input", "native_batch_norm_backward": "both"}  # what a two-pass norm reads again


@dataclass
class Counted:
    """Of one training step; bytes of tensors of `large` elements and more stand apart."""

    launches: int = 0
    unique_bytes: int = 0
    large_bytes: int = 0  # of activations and their gradients
    again_bytes: int = 0  # what batch norms in two passes read once more
    saved_bytes: int = 0  # kept for the backward, without weights


class CastConv(nn.Conv2d):
    """A convolution as autocast runs it: its float32 weight is cast in every forward."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight.to(x.dtype), None, self.stride, self.padding)


class _Counter(TorchDispatchMode):
    def __init__(self, counted: Counted, large: int) -> None:
        super().__init__()
        self.counted, self.large = counted, large

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        inputs, outputs = _tensors((args, kwargs)), _tensors(out)
        if not name.startswith("empty") and (func._schema.is_mutable or not _views(inputs, outputs)):
            again = inputs[: {"input": 1, "both": 2}[SECOND_PASS[name]]] if name in SECOND_PASS else []
            both = name == "convolution_backward" and len(outputs) == 2
            self._add([*inputs, *outputs, *(inputs[:1] if both else [])], again, 2 if both else 1)
        return out

    def _add(self, touched: list[Tensor], again: list[Tensor], launches: int) -> None:
        self.counted.launches += launches
        self.counted.unique_bytes += sum(map(_bytes, touched))
        self.counted.large_bytes += sum(_bytes(t) for t in touched if t.numel() >= self.large)
        self.counted.again_bytes += sum(map(_bytes, again))


def count(blocks: list[nn.Module], gates: list[int], x: Tensor) -> Counted:
    """A training step of `blocks` of benchmarks.eager under a gate each, on x [N, C, H, W] without memory."""
    counted, large, kept = Counted(), x.numel() // 8, {}
    parameters = [p for block in blocks for p in block.parameters()]
    known = {_storage(t) for t in parameters}

    def pack(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in known and tensor.numel() >= large:
            kept[_storage(tensor)] = tensor
        return tensor

    stream = x.detach().requires_grad_()
    counter = _Counter(counted, large)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), counter:
        y = stream * 1  # a block may not change a leaf in place; taken off below
        for block, gate in zip(blocks, gates, strict=True):
            y = block(y, gate)
    gradient = torch.empty_like(y)
    with counter:
        torch.autograd.grad(y, [stream, *parameters], gradient, allow_unused=True)
    counted.saved_bytes = sum(_bytes(t) for t in kept.values())
    for field, ends in (("launches", 2), ("unique_bytes", 4 * _bytes(x)), ("large_bytes", 4 * _bytes(x))):
        setattr(counted, field, getattr(counted, field) - ends)
    return counted


def cast_convolutions(block: nn.Module) -> nn.Module:
    """The block, its convolutions cast as autocast casts them."""
    for module in block.modules():
        if isinstance(module, nn.Conv2d):
            module.__class__ = CastConv
    return block


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _views(inputs: list[Tensor], outputs: list[Tensor]) -> bool:
    known = {_storage(t) for t in inputs}
    return all(_storage(t) in known for t in outputs)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
