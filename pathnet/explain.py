"""Which kernel runs each block of a net, and every refusal in a sentence."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pathnet.backend import BACKENDS, choose, refusal
from pathnet.blocks import ResidualBlock
from pathnet.blocks.stage import fusable_spec
from pathnet.gates import Paths
from pathnet.models import PathResNet
from pathnet.models.whole import in_one_launch, whole_net
from pathnet.ops.net_eval import SUPPORTS as NET_EVAL
from pathnet.ops.stage import trains
from pathnet.ops.stage_eval import LOSES as EVAL_LOSES
from pathnet.ops.stage_eval import SUPPORTS as EVAL
from pathnet.ops.stage_masked import LOSES as MASKED_LOSES
from pathnet.ops.stage_masked import SUPPORTS as MASKED
from pathnet.ops.stage_masked import backend_of
from pathnet.ops.stage_train import LOSES as TRAIN_LOSES
from pathnet.ops.stage_train import SUPPORTS as TRAIN
from pathnet.ops.stage_train_cpu import unfit_shortcut
from pathnet.reference import Block, Conv, Pad
from pathnet.samplers import Sampler


@dataclass(frozen=True)
class BlockReport:
    """How one block would run: op, backend, precision of its products, whether it is fused, the refusals."""

    block: int
    kind: str
    op: str
    backend: str
    precision: str
    fused: bool
    reasons: dict[str, str]  # backend -> why it does not run this block, or not its shortcut


@dataclass(frozen=True)
class Explanation:
    """What `explain` found, a row a block; `str()` is a table with each distinct reason once."""

    blocks: list[BlockReport]

    def __str__(self) -> str:
        lines, notes = [f"{'block':>5}  {'kind':<16} {'op':<12} {'backend':<10} {'products':<9} how"], []
        for row in self.blocks:
            marks = []
            for backend, reason in row.reasons.items():
                note = f"{backend}: {reason}"
                if note not in notes:
                    notes.append(note)
                marks.append(str(notes.index(note) + 1))
            how = "fused" if row.fused else "module by module"
            lines.append(
                f"{row.block:>5}  {row.kind:<16} {row.op:<12} {row.backend:<10} {row.precision:<9} {how} "
                f"[{', '.join(marks)}]"
            )
        return "\n".join([*lines, "", *(f"[{i + 1}] {note}" for i, note in enumerate(notes))])


def explain(net: PathResNet, x: Tensor, paths: Paths | None = None) -> Explanation:
    """Say which backend runs each block for input x [N, C, H, W], as grad mode and train or eval stand now.

    Of `paths`, or of those of the net, it counts whether the gates are on the device (`Paths.on_device`). Runs the stem
    once, for the dtype and device that reach the blocks. Raises TypeError if `net` is no PathResNet.
    """
    if not isinstance(net, PathResNet):
        raise TypeError(f"net must be a pathnet.PathResNet, got {type(net).__name__}")
    paths = paths if paths is not None or isinstance(net.paths, Sampler) else net.paths
    live = None if paths is None or not paths.live else paths.gates
    if live is None and in_one_launch(net, x) is not None:
        return Explanation([_one_launch(i, block, x) for i, block in enumerate(net.blocks)])
    with torch.no_grad():
        inside = net.stem(x, update=False)
    inside = inside.requires_grad_(torch.is_grad_enabled() and any(p.requires_grad for p in net.parameters()))
    whole = refusal("net_eval", "cuda", NET_EVAL, x, whole_net(net))
    rows = []
    for i, block in enumerate(net.blocks):
        row = _report(i, block, inside, None if live is None else live[i : i + 1])
        if row.op == "stage_eval" and row.fused:
            row.reasons["cuda"] = str(whole)
        rows.append(row)
        inside = _after(block, inside)
    return Explanation(rows)


def _one_launch(index: int, block: nn.Module, x: Tensor) -> BlockReport:
    products = "tf32" if x.dtype == torch.float32 else str(x.dtype).removeprefix("torch.")
    return BlockReport(index, type(block).__name__, "net_eval", "cuda", products, True, {})


def _after(block: nn.Module, x: Tensor) -> Tensor:
    """A tensor of the shape that leaves the block, as its shortcut says; nobody reads its values."""
    n, channels, h, w = x.shape
    for layer in block.spec().shortcut if isinstance(block, ResidualBlock) else ():
        if isinstance(layer, Pad):
            channels, h, w = channels + layer.before + layer.after, -(-h // layer.stride), -(-w // layer.stride)
        elif isinstance(layer, Conv):
            channels, h, w = len(layer.weight), -(-h // layer.stride[0]), -(-w // layer.stride[1])
    return x.new_empty((n, channels, h, w)).requires_grad_(x.requires_grad)


def _report(index: int, block: nn.Module, x: Tensor, live: Tensor | None) -> BlockReport:
    kind, dtype = type(block).__name__, str(x.dtype).removeprefix("torch.")
    if not isinstance(block, ResidualBlock):
        reason = "it is no pathnet block and runs as the module it is"
        return BlockReport(index, kind, "module", "none", dtype, False, dict.fromkeys(BACKENDS, reason))
    specs = [block.spec()]
    name, supports, loses, call = _op(block, specs, x, live)
    reasons = {b: why for b in BACKENDS if (why := refusal(name, b, supports, *call, loses=loses)) is not None}
    fused = fusable_spec(block) is not None
    if not fused:
        why = block.why_as_module() or "the block itself has a hook"
        reasons = {b: f"the block runs module by module, since {why}" for b in BACKENDS if b != "reference"}
    backend = choose(name, supports, *call, loses=loses) if live is None else backend_of(*call)
    if backend == "cpu" and name == "stage_train" and (why := unfit_shortcut(specs[0])) is not None:
        reasons["cpu"] = f"the shortcut alone runs in plain PyTorch, since {why}"
    precision = block.precision if backend == "cpu" and name == "stage_eval" else None
    return BlockReport(index, kind, name, backend, precision or dtype, fused, reasons)


def _op(block: ResidualBlock, specs: list[Block], x: Tensor, live: Tensor | None) -> tuple:
    """The op that runs the block: its name, what its backends support and where they lose, and the call."""
    if live is not None:
        return "stage_masked", MASKED, MASKED_LOSES, (x, specs, live)
    if trains(x, specs):
        return "stage_train", TRAIN, TRAIN_LOSES, (x, specs)
    return "stage_eval", EVAL, EVAL_LOSES, (x, specs, block.precision)
