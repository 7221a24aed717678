"""Cases of stage_train by CUDA on the host: stages, comparisons to the bit, and planted bugs."""

from __future__ import annotations

import importlib

import pytest
import torch
from cases import make_stage
from cuda_host.host import Edit, KernelError
from cuda_host.ops import on_host
from training_cases import step
from triton_cases import halves

TF32 = 0.5  # and how much more in TF32 than eager PyTorch in bfloat16, which has three bits less
CASES = [  # dtype, shape and gates
    (torch.bfloat16, (3, 16, 14, 15), [1]),
    (torch.bfloat16, (2, 16, 20, 29), [1, 2, 2, 0, 3, 4]),  # bands of 8, 8 and 4 rows, a mask of two blocks
    (torch.bfloat16, (3, 16, 16, 16), [2, 4, 2]),
    (torch.float16, (36, 32, 5, 7), [1, 3]),
    (torch.bfloat16, (37, 64, 8, 8), [3, 1]),
]
TF32_CASES = [((2, 16, 17, 18), [1, 2, 4]), ((14, 32, 7, 6), [3, 1]), ((19, 64, 8, 8), [3, 1])]
FORMS = ("basic", "preact")
stage_train = importlib.import_module("pathnet.ops.stage_train")  # the module, and not its function


def stage_of(dtype: torch.dtype, channels: int = 16, blocks: int = 1, form: str = "basic"):
    """Blocks that keep their shape, every ReLU away from its kink, where half precision may fall on either side."""
    return halves(make_stage(form, "pad", channels, channels, 1, blocks), dtype).train()


def case(form: str, dtype: torch.dtype, shape: tuple[int, ...], blocks: int):
    """A stage and images, which behind a ReLU are not negative."""
    return stage_of(dtype, shape[1], blocks, form), (torch.rand if form == "basic" else torch.randn)(shape).to(dtype)


def differences(got: dict, expected: dict) -> list[str]:
    return [name for name, t in expected.items() if t is not None and not torch.equal(got[name], t)]


def assert_found(pattern: str, edit: Edit, stage, x, route) -> None:
    """The planted bug is reported in check mode, or changes a value."""
    with on_host():
        expected = step("cuda", stage, x, route)
    with pytest.raises(AssertionError, match=pattern), on_host("check", "skewed by warp", edits=(edit,)):
        if differences(step("cuda", stage, x, route), expected):
            raise KernelError("differs")
