"""The Triton kernels, executed as the PTX that Triton compiles for sm_80."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import pytest
import torch
import triton
from ptx.launch import launch
from ptx.machine import Kernel
from ptx.parse import parse

from pathnet.kernels import workspace
from pathnet.kernels.compile import ptx_of
from pathnet.kernels.launch import Launch, observed
from pathnet.ops import triton_calls

Edit = Callable[[str], str]


@contextmanager
def executed(edit: Edit = str, backwards: bool = False) -> Iterator[list[Launch]]:
    """Calls of the `triton` backend on CPU tensors run PTX, which `edit` may change first; the launches.

    Only the text, its launch description as JSON and the memory of the tensors pass from one side to the other.
    """
    with observed() as launches, pytest.MonkeyPatch.context() as patch:

        def run(self, *args, **kwargs) -> None:
            ptx, description = ptx_of(launches[-1], 80)
            values = {**launches[-1].reached, **launches[-1].arguments}
            tensors = {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
            launch(_kernel(edit(ptx)), json.loads(json.dumps(description)), tensors, backwards)

        patch.setattr(triton.JITFunction, "run", run)
        patch.setattr(triton_calls, "_interpreted", lambda: True)
        patch.setattr(workspace, "_counters", {})  # a launch that was broken off leaves no zeros
        yield launches


@cache
def _kernel(ptx: str) -> Kernel:
    return Kernel(parse(ptx))
