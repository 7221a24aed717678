"""A stage of gated blocks in evaluation, batch norm folded: no gradient, nothing saved."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pathnet import extension
from pathnet.backend import choose
from pathnet.ops.eval_blocks import CONV, WIDE, Chain, arguments, facts_of
from pathnet.ops.parameters import holds_modules
from pathnet.ops.schemas import library
from pathnet.ops.stage_eval_triton import stage_eval_triton, supports_triton
from pathnet.ops.stage_traced import stage_traced
from pathnet.ops.triton_calls import loses_triton
from pathnet.reference import Block, Step, host_steps
from pathnet.reference import stage as reference_stage
from pathnet.route import Route


def stage_eval(x: Tensor, blocks: Sequence[Block], route: Route | None = None, precision: str | None = None) -> Tensor:
    """`stage` without a gradient: x_i = act(h_i(x_{i-1}) + s_i f_i(x_{i-1})), OFF blocks cost nothing.

    `precision="bf16"`: the CPU kernel rounds the operands of its Winograd products to bf16; the reference does not.
    Shapes: x [N, C, H, W]. Raises RuntimeError if a forced backend cannot run the call.
    """
    backend = choose("stage_eval", SUPPORTS, x, blocks, precision, route, loses=LOSES)
    if backend == "triton":
        return stage_eval_triton(x, blocks, route)
    if backend == "cpu":
        return stage_eval_cpu(x, blocks, route, precision)
    if route is None:
        return reference_stage(x, blocks, [Step()] * len(blocks))
    if torch.compiler.is_compiling() and not holds_modules(blocks):
        return stage_traced(x, blocks, route, zero_unused=False)
    return reference_stage(x, blocks, host_steps(route.gates, route.multiplier, route.update, route.mask_rows))


def supports_cpu(
    x: Tensor, blocks: Sequence[Block], precision: str | None = None, route: Route | None = None
) -> str | None:
    """Why the compiled CPU kernel cannot run these blocks, in a sentence; None if it can."""
    if not extension.available():
        return extension.why_not()
    if x.device.type != "cpu":
        return f"x is on {x.device}, and this kernel reads CPU memory"
    if x.dtype != torch.float32:
        return f"x is {x.dtype}, and this kernel computes in float32"
    if torch.is_autocast_enabled("cpu"):
        return "autocast asks for another dtype than this kernel's float32"
    return _unfit_precision(precision) or next((facts.unfit for facts in facts_of(blocks) if facts.unfit), None)


def _unfit_precision(precision: str | None) -> str | None:
    if precision is None:
        return None
    instructions = extension.build_info()["cpu"]["instructions"]
    if instructions in MULTIPLY_BF16:
        return None
    return f'precision="bf16" needs AVX512-BF16 or AMX, and the kernels here run on {instructions}'


def loses_cpu(
    x: Tensor, blocks: Sequence[Block], precision: str | None = None, route: Route | None = None
) -> str | None:
    """Where the vendor's convolutions beat this kernel: few pixels share large weights (docs/benchmarks.md).

    Products in bf16 are this kernel's alone.
    """
    if precision == "bf16" or all(facts.widest <= WIDE for facts in facts_of(blocks)):
        return None
    _, _, h, w = x.shape
    for facts in facts_of(blocks):
        h, w = -(-h // facts.stride), -(-w // facts.stride)
        tiles = len(x) * -(-h // TILE) * -(-w // TILE)
        if facts.widest > WIDE and tiles < FEWEST_TILES:
            return (
                f"a 3x3 convolution of {facts.widest} channels has {tiles} tiles of {TILE}x{TILE}, and with fewer "
                f"than {FEWEST_TILES} the vendor library is faster than weights transformed for them"
            )
    return None


CONVS = (2, 2, 3, 0, 0)  # of the residual function, by form
TILE = 4  # side of what one Winograd tile puts out
FEWEST_TILES = 4  # that wide convolutions ask for
MULTIPLY_BF16 = ("avx512_bf16", "amx")  # instruction sets (csrc/cpu/isa.h)
LOSES = {"triton": loses_triton, "cpu": loses_cpu}
SUPPORTS = {"triton": supports_triton, "cpu": supports_cpu, "reference": lambda *call: None}


def stage_eval_cpu(
    x: Tensor, blocks: Sequence[Block], route: Route | None = None, precision: str | None = None
) -> Tensor:
    """Peel off the OFF blocks where gates are known on the host, and call the kernel once for the rest.

    A stem runs under every gate.
    """
    facts = facts_of(blocks)
    if route is None:
        gates, scales = torch.ones(len(blocks), dtype=torch.int8), torch.ones(len(blocks))
    else:
        gates, scales = route.gates, route.multiplier.float()
    if route is not None and not torch.compiler.is_compiling():
        on = (gates != 0).reshape(-1, len(blocks)).any(0).tolist()
        alive = [i for i, block in enumerate(blocks) if on[i] or block.shortcut]
        facts, gates, scales = [facts[i] for i in alive], gates[..., alive], scales[..., alive]
    if not facts:
        return x
    if isinstance(blocks, Chain) and len(facts) == len(blocks):
        tensors, numbers, eps = blocks.arguments
    else:
        tensors, numbers, eps = arguments(facts)
    return torch.ops.pathnet.stage_eval(x, gates, scales, tensors, numbers, eps, precision or "float32")


def _fake(x, gates, scales, tensors, blocks, eps, precision):
    n, channels, h, w = x.shape
    weights = [t for t in tensors if t.dim() == 4]
    for form, stride, shortcut, _ in zip(*[iter(blocks)] * 4, strict=True):
        branch = CONVS[form]
        channels, h, w = weights[max(branch, 1) - 1].shape[0], -(-h // stride), -(-w // stride)
        weights = weights[branch + (shortcut == CONV) :]
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return x.new_empty((n, channels, h, w)).to(memory_format=memory_format)


torch.library.register_fake("pathnet::stage_eval", _fake, lib=library)
