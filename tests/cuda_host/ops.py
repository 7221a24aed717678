"""The CUDA ops on CPU tensors: their kernels, executed on the host in place of the launch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from cuda_host import stage_train
from cuda_host.host import Library, library
from torch import Tensor

from pathnet import extension
from pathnet.ops.net_eval_limits import shared_bytes

OPERANDS = {torch.bfloat16: "Bf16", torch.float16: "Fp16", torch.float32: "Tf32"}


def array(tensor: Tensor) -> np.ndarray:
    """The memory of a tensor from its first element on, in its own order."""
    size = tensor.untyped_storage().nbytes() // tensor.itemsize - tensor.storage_offset()
    flat = tensor.detach().as_strided((size,), (1,))
    return (flat.view(torch.int16) if tensor.itemsize == 2 else flat).numpy()


class OnHost:
    """How kernels run: compiled to be fast or to be checked, with which schedule, and with which bugs planted."""

    def __init__(self, mode: str = "values", schedule: str = "in order", seed: int = 1, edits=()):
        self.mode, self.schedule, self.seed, self.edits = mode, schedule, seed, edits
        self.launches = self.requested = 0  # of the ops of training; bytes, in check mode

    def library(self, binding: str, operand: torch.dtype, *macros: str) -> Library:
        return library(binding, self.mode, (f"OPERAND={OPERANDS[operand]}", *macros), self.edits)

    def net_eval(
        self, x, weights, first, vectors, classifier, gates, order, scales, repeat, stages, slices, pads, preact
    ):
        widest = vectors.shape[2]
        classes = classifier.numel() // (widest + 1)
        logits = torch.full((len(x) * repeat, classes), torch.nan, dtype=x.dtype)
        inputs = dict(images=x, weights=weights, first_slice=first, vectors=vectors, classifier=classifier)
        inputs |= dict(gates=gates, order=order, scales=scales)
        size = x.shape[1:]
        numbers = [*x.stride(), len(gates), repeat, *size, classes, *stages, slices, *pads, preact, len(logits)]
        self.library("net_eval.cpp", x.dtype)(
            "net_eval",
            {name: array(tensor) for name, tensor in inputs.items()},
            {"logits": array(logits)},
            [*numbers, shared_bytes(x.dtype, *size[1:], widest // 4), widest // 4],
            self.schedule,
            self.seed,
        )
        return logits

    def stage_train_cuda_fwd(self, x, *rest):
        y, saved, launches, requested = stage_train.forward(self._stage_train(x), x, *rest, **self._how())
        self.launches, self.requested = self.launches + launches, self.requested + requested
        return y, saved

    def stage_train_cuda_bwd(self, grad_y, x, *rest):
        grads, launches, requested = stage_train.backward(self._stage_train(x), grad_y, x, *rest, **self._how())
        self.launches, self.requested = self.launches + launches, self.requested + requested
        return grads

    def stage_train_cuda_count(self, numbers, itemsize, backward):
        dtype = {2: torch.float16, 4: torch.float32}[itemsize]
        return stage_train.count(self._training(dtype, numbers[stage_train.CHANNELS_PLACE]), numbers, backward)

    def _stage_train(self, x: Tensor) -> Library:
        return self._training(x.dtype, x.shape[1])

    def _training(self, dtype: torch.dtype, channels: int) -> Library:
        return self.library("stage_train.cpp", dtype, f"CHANNELS={channels}")

    def _how(self) -> dict[str, str | int]:
        return {"schedule": self.schedule, "seed": self.seed}


@contextmanager
def on_host(*args, kind: type[OnHost] = OnHost, **kwargs) -> Iterator[OnHost]:
    """Inside, the CUDA ops take CPU tensors and run there, as `kind` runs them."""
    runner = kind(*args, **kwargs)
    implementations = torch.library.Library("pathnet", "IMPL")
    for name in ("net_eval", "stage_train_cuda_fwd", "stage_train_cuda_bwd"):
        implementations.impl(name, getattr(runner, name), "CPU")
    if not extension.available("cuda"):
        implementations.impl("stage_train_cuda_count", runner.stage_train_cuda_count, "CompositeExplicitAutograd")
    try:
        yield runner
    finally:
        implementations._destroy()
