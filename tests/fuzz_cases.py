"""Random stages for tests/test_fuzz.py: what is drawn, and how a drawn case becomes tensors."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from cases import SHORTCUTS, make_stage
from torch import Tensor, nn

from pathnet import Gate
from pathnet.blocks import BLOCKS, Stage
from pathnet.route import Route

SIDES = (1, 2, 3, 4, 5, 7, 8, 9, 12, 13, 16, 17, 33)
CHANNELS = (1, 3, 8, 13, 16, 16, 24, 32, 40, 64, 72, 136, 264)
LAYOUTS = ("contiguous", "contiguous", "channels_last", "channels_last", "view", "transposed", "expanded")
MOST_VALUES = 6_000  # of an activation: among more, one lies too close to the kink of a ReLU in every draw
FEWEST_VALUES = 16  # a channel under batch statistics: with fewer, gradients cancel down to roundings


@dataclass(frozen=True)
class Case:
    """All that a run depends on. `check(Case(...))`, with the repr that a failure prints, runs it again."""

    form: str
    shortcut: str
    channels: int
    width: int
    stride: int
    blocks: int
    size: tuple[int, int]
    batch: int
    gates: tuple  # a number a block, or such a row for each image
    multiplier: tuple  # the same
    mask_rows: bool
    update: bool
    norm: str  # plain, no_affine, untracked, cumulative
    trained: tuple[int, ...]  # a batch norm each: on batch statistics
    needs: tuple[int, ...]  # requires_grad of x, then of the parameters
    zero_unused: bool
    layout: str  # of x
    weight_layout: str
    grad_layout: str
    dtype: str
    threads: int
    seed: int  # of the values of x and of the incoming gradient

    def make_stage(self) -> Stage:
        stage = make_stage(self.form, self.shortcut, self.channels, self.width, self.stride, self.blocks)
        for norm, trained in zip(norms(stage), self.trained, strict=True):
            norm.train(bool(trained))
            _change(norm, self.norm)
        for p, need in zip(stage.parameters(), self.needs[1:], strict=True):
            layout = self.weight_layout
            if layout == "view" and p.dim() == 1 and any(self.needs):
                layout = "offset"  # PyTorch's channels-last gradient of batch norm reads beside a strided weight
            p.data = _lay_out(p.data.to(getattr(torch, self.dtype)), layout)
            p.requires_grad_(bool(need))
        return stage.to(getattr(torch, self.dtype))

    def make_x(self) -> Tensor:
        x = torch.randn(self.batch, self.channels, *self.size, generator=torch.Generator().manual_seed(self.seed))
        masked = (
            self.mask_rows and BLOCKS[self.form].post_activation
        )  # the mask leaves act(x) of an OFF block, a kernel x
        x = x.relu() if self.seed % 2 or masked else x  # as inside a net, or anything
        return _lay_out(x.to(getattr(torch, self.dtype)), self.layout).requires_grad_(bool(self.needs[0]))

    def make_grad(self, y: Tensor) -> Tensor:
        """The incoming gradient."""
        grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(self.seed + 1))
        return _lay_out(grad.to(y.dtype), self.grad_layout)

    def route(self) -> Route:
        gates = torch.tensor(self.gates, dtype=torch.int8)
        multiplier = torch.tensor(self.multiplier, dtype=torch.float64)
        tables = (t if t.numel() else t.reshape(0, self.blocks) for t in (gates, multiplier))
        return Route(*tables, update=self.update, mask_rows=self.mask_rows)


def norms(stage: Stage) -> list[nn.BatchNorm2d]:
    return [module for module in stage.modules() if isinstance(module, nn.BatchNorm2d)]


def _change(norm: nn.BatchNorm2d, kind: str) -> None:
    if kind == "no_affine":
        norm.affine, norm.weight, norm.bias = False, None, None
    elif kind == "untracked":
        norm.track_running_stats = False
        norm.running_mean = norm.running_var = norm.num_batches_tracked = None
    elif kind == "cumulative":
        norm.momentum = None


def _lay_out(t: Tensor, layout: str) -> Tensor:
    """The same values in other memory. Around a view lies NaN: who reads beside it shows it."""
    if layout == "channels_last" and t.dim() == 4:
        return t.to(memory_format=torch.channels_last)
    if layout == "transposed" and t.dim() == 4:
        return t.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "expanded" and t.dim() == 4 and len(t):
        return t[:1].expand_as(t)
    if layout in ("view", "offset"):
        step = 2 if layout == "view" else 1
        around = t.new_full([*(size + 3 for size in t.shape[:-1]), step * t.shape[-1] + 3], torch.nan)
        inside = around[tuple(slice(2, 2 + size) for size in t.shape[:-1])]
        return inside[..., 1 : 1 + step * t.shape[-1] : step].copy_(t)
    return t


def draw(number: int, training: bool) -> Case:
    """Case `number`, the same on every machine; with `training` something may need a gradient or move."""
    rng = random.Random(number)
    shape = _draw_shape(rng)
    per_image = rng.random() < 0.4
    kinds = rng.choice(([Gate.FULL], [Gate.OFF, Gate.FULL], [Gate.FORWARD, Gate.FULL], list(Gate), list(Gate)))
    gates = _table(rng, lambda: int(rng.choice(kinds)), per_image, shape)
    factors = rng.choice(((1.0,), (1.0, 0.5, -1.5, 0.0)))
    multiplier = _table(rng, lambda: rng.choice(factors), rng.random() < 0.3, shape)
    mask_rows = per_image and rng.random() < 0.3

    norm = rng.choice(("plain",) * 17 + ("no_affine", "untracked", "cumulative"))
    trained = rng.choice((0.0, 1.0, 1.0, 0.5)) if training else 0.0
    if 2 <= _fewest_values(gates, mask_rows, shape) < FEWEST_VALUES:
        norm, trained = "plain", 0.0
    stage = make_stage(*(shape[name] for name in ("form", "shortcut", "channels", "width", "stride", "blocks")))
    count = len(norms(stage))
    parameters = len(list(stage.parameters())) - (2 * count if norm == "no_affine" else 0)
    shares = rng.choice(((1, 0), (0, 1), (1, 1), (1, 1), (1, 0.5), (0, 0.5))) if training else (0, 0)
    return Case(
        **shape,
        gates=gates,
        multiplier=multiplier,
        mask_rows=mask_rows,
        update=rng.random() < 0.8,
        norm=norm,
        trained=_bits(rng, trained, count),
        needs=(shares[0], *_bits(rng, shares[1], parameters)),
        zero_unused=rng.random() < 0.3,
        layout=rng.choice(LAYOUTS),
        weight_layout=rng.choice(("contiguous", "contiguous", "channels_last", "view")),
        grad_layout=rng.choice(LAYOUTS),
        dtype=rng.choice(("float32",) * 9 + ("float64",)),
        threads=rng.choice((1, 1, 2, 3)),
        seed=rng.randrange(10**6),
    )


def _draw_shape(rng: random.Random) -> dict:
    form, stride = rng.choice(tuple(BLOCKS)), rng.choice((1, 1, 1, 2, 2, 2, 3))
    expansion = BLOCKS[form].expansion
    channels, width = rng.choice(CHANNELS), max(1, rng.choice(CHANNELS) // expansion)
    if rng.random() < 0.4:  # every shortcut is the identity
        channels, stride = width * expansion, 1
    sides = SIDES if max(channels, width * expansion) < 100 else SIDES[:5]
    size = rng.choice(sides), rng.choice(sides)
    most = MOST_VALUES // (max(channels, width * expansion) * size[0] * size[1])
    return dict(
        form=form,
        shortcut=rng.choice(SHORTCUTS) if width * expansion >= channels else "conv",
        channels=channels,
        width=width,
        stride=stride,
        blocks=rng.randint(1, 4),
        size=size,
        batch=min(rng.choice((0, 1, 1, 2, 2, 3, 5, 8, 17)), max(1, most)),
    )


def _table(rng: random.Random, value, per_image: bool, shape: dict) -> tuple:
    def row() -> tuple:
        return tuple(value() for _ in range(shape["blocks"]))

    return tuple(row() for _ in range(shape["batch"])) if per_image else row()


def _bits(rng: random.Random, share: float, count: int) -> tuple[int, ...]:
    return tuple(int(rng.random() < share) for _ in range(count))


def _fewest_values(gates: tuple, mask_rows: bool, shape: dict) -> int:
    """How many values a channel reach the batch norm that gets the fewest."""
    rows = shape["batch"]
    if gates and isinstance(gates[0], tuple) and not mask_rows:
        running = [sum(gate != Gate.OFF for gate in column) for column in zip(*gates, strict=True)]
        rows = min((count for count in running if count), default=rows)
    height, width = (-(-side // shape["stride"]) for side in shape["size"])
    return rows * height * width
