"""Whole experiments on ResNet-110: lists of lesions, drawn paths and the exact spectrum, against plain loops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cases import BLOCKS, EVALUATION, FULL, OFF, Case
from benchmarks.harness import Race
from benchmarks.peak import growth
from benchmarks.providers import CHANNELS_LAST, NCHW, PATHNET, Shared
from pathnet import Paths, analysis
from pathnet.analysis.gradients import as_steps, drawn_paths, products

LOOPED = 3  # entries of each list that the plain loop runs: all of them cost it the same
TALL = 18  # blocks between those whose pairs are measured
DRAWN = 1000  # paths of each length
PARTS, MOST = 4, 64  # of the sorted paths that are run, and paths of each
FEW = 2  # images whose gradients are compared, in float64


@dataclass(frozen=True)
class Study:
    """One experiment: calls that take turns, and how many times as long the whole of each is.

    `check` raises AssertionError where pathnet and the plain net disagree. `whole` holds factors by name of a call, 1
    where it is left out; `note` says what was measured and what follows.
    """

    calls: dict[str, Callable[[], object]]
    check: Callable[[], None]
    note: str
    whole: dict[str, float] = field(default_factory=dict)

    def summary(self, race: Race) -> dict[str, object]:
        """Seconds and ratios of whole experiments, from those of the calls."""
        for name, factor in self.whole.items():
            race.seconds[name] = [factor * seconds for seconds in race.seconds[name]]
        return race.summary([name for name in self.calls if name != PATHNET])


def lesions(block: str, images: int) -> Study:
    """The whole net and every single deletion; the plain loop runs some of them, and the rest costs as much."""
    return _lesions(block, images, [(), *((i,) for i in range(BLOCKS))], 1.0, "")


def pairs(block: str, images: int) -> Study:
    """All pairs with one of three blocks as the first; by block evaluations the rest follows."""
    everything = list(combinations(range(BLOCKS), 2))
    some = [pair for pair in everything if pair[0] % TALL == 0]
    factor = evaluations(everything) / evaluations(some)
    note = f"{len(some)} of {len(everything)} pairs were run, the rest follows by block evaluations"
    return _lesions(block, images, some, factor, note, of=len(everything))


def evaluations(subsets: Sequence[tuple[int, ...]], blocks: int = BLOCKS) -> int:
    """Block evaluations that a list of deletions costs when common beginnings run once."""
    kept = [tuple(block for block in range(blocks) if block not in subset) for subset in subsets]
    return len({sequence[: end + 1] for sequence in kept for end in range(len(sequence))})


def _lesions(
    block: str, images: int, subsets: Sequence[tuple[int, ...]], whole: float, note: str, of: int | None = None
) -> Study:
    shared = Shared.of(Case(110, block, EVALUATION, images))
    classes = torch.arange(images) % 10
    looped = [subsets[len(subsets) * i // LOOPED] for i in range(LOOPED)]
    calls: dict[str, Callable[[], object]] = {}
    for name, layout in ((NCHW, torch.contiguous_format), (CHANNELS_LAST, torch.channels_last)):
        eager = shared.eager(layout)
        calls[name] = lambda eager=eager: [eager_predictions(eager.module, eager.x, subset) for subset in looped]
    net = shared.pathnet().net
    paths = [Paths.delete(BLOCKS, subset) for subset in subsets]
    calls[PATHNET] = lambda: analysis.evaluate(net, (shared.x, classes), paths)
    count = len(subsets) if of is None else of
    factors = {NCHW: count / LOOPED, CHANNELS_LAST: count / LOOPED, PATHNET: whole}
    words = f"{images} images; the plain loop ran {LOOPED} of {count} entries"

    def check() -> None:
        few = shared.x[:50], classes[:50]
        for subset, result in zip(
            looped, analysis.evaluate(net, few, [Paths.delete(BLOCKS, s) for s in looped]), strict=True
        ):
            assert torch.equal(result.predictions, eager_predictions(eager.module, few[0], subset)), subset

    return Study(calls, check, f"{words}; {note}" if note else words, factors)


@torch.no_grad()
def eager_predictions(net: nn.Module, x: Tensor, deleted: Sequence[int], batch: int = 500) -> Tensor:
    """Predicted classes of the plain net without some of its blocks."""
    gates = [OFF if block in deleted else FULL for block in range(sum(len(s) for s in _stages(net)))]
    return torch.cat([net(part, gates).argmax(1) for part in x.split(batch)])


def _stages(net: nn.Module) -> list[nn.Sequential]:
    return [getattr(net, f"layer{i + 1}") for i in range(net.num_stages)]


# ---- gradients -----------------------------------------------------------------------------------------------------


def sampled_paths(block: str, batch: int) -> Study:
    """Paths of every length; the plain loop runs forward and masked backward for some, and the rest costs as much.

    pathnet runs some pieces of the sorted paths; by products with Jacobians of residual branches the rest follows.
    """
    shared = Shared.of(Case(110, block, EVALUATION, batch))
    data = shared.x, torch.arange(batch) % 10
    drawn = [path for length in range(BLOCKS + 1) for path in drawn_paths(BLOCKS, length, DRAWN, 0)]
    gradients = analysis.PathGradients(shared.pathnet().net, data)
    parts = gradients.parts(as_steps(path, BLOCKS) for path in drawn)
    some = parts[len(parts) // (2 * PARTS) :: -(-len(parts) // PARTS)]
    followed = [path for part in some for path in part[:MOST]]
    chosen = [[BLOCKS - 1 - i for i, through in enumerate(path) if through] for path in followed]
    eager = MaskedNet(shared.eager().net.eval().requires_grad_(False))
    masks = [torch.randperm(BLOCKS, generator=torch.Generator().manual_seed(k))[:k] for k in (9, 27, 45)]
    calls: dict[str, Callable[[], object]] = {
        CHANNELS_LAST: lambda: [eager.input_gradient(*data, mask.tolist()) for mask in masks],
        PATHNET: lambda: gradients.log10_norms(chosen),
    }
    note = (
        f"batch {batch}; {DRAWN:,} paths of each length, {products(parts):,} block products where one by one they "
        f"are {sum(map(len, drawn)):,}; {len(followed)} paths were run, the rest follows by block products; the plain "
        f"loop ran {len(masks)}"
    )

    def check() -> None:
        path = masks[0].tolist()
        exact = data[0][:FEW].double(), data[1][:FEW]  # in float32 a mask that flips would show
        plain = MaskedNet(shared.eager().net.eval().requires_grad_(False).double())
        gradient, exponent = analysis.PathGradients(shared.pathnet().net.double(), exact).along(path)
        expected = plain.input_gradient(*exact, path)
        assert (gradient * 2.0**exponent - expected).norm() <= 1e-10 * expected.norm()

    factors = {CHANNELS_LAST: len(drawn) / len(masks), PATHNET: products(parts) / products(gradients.parts(followed))}
    return Study(calls, check, note, factors)


def spectrum(block: str, batch: int) -> Study:
    """The exact sums over the paths of each length; no plain program does this."""
    shared = Shared.of(Case(110, block, EVALUATION, batch))
    data, net = (shared.x, torch.arange(batch) % 10), shared.pathnet().net
    products, memory = BLOCKS * (BLOCKS + 1) // 2, growth(lambda: analysis.gradient_spectrum(net, data))
    note = f"batch {batch}; {products:,} block products; at most {memory / 2**20:.0f} MiB"

    def check() -> None:
        assert analysis.gradient_spectrum(net, (data[0][:FEW], data[1][:FEW])).mismatch < 1e-4

    return Study({PATHNET: lambda: analysis.gradient_spectrum(net, data)}, check, note)


class _Chosen(torch.autograd.Function):
    """skip + residual, whose gradient goes one way alone: how a plain program measures one path."""

    @staticmethod
    def forward(ctx, skip: Tensor, residual: Tensor, through: bool) -> Tensor:
        ctx.through = through
        return skip + residual

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return (None, gradient, None) if ctx.through else (gradient, None, None)


class MaskedNet:
    """The plain net `net` with a mask in the backward of every addition."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def input_gradient(self, x: Tensor, y: Tensor, chosen: Sequence[int]) -> Tensor:
        """Gradient of the mean cross-entropy at the images x along the one path through the blocks `chosen`."""
        net, source = self.net, x.detach().requires_grad_()
        stream = net.conv1(source) if net.preact else torch.relu(net.bn1(net.conv1(source)))
        blocks = [block for stage in _stages(net) for block in stage]
        for index, block in enumerate(blocks):
            skip = stream if block.downsample is None else block.downsample(stream)
            z = _Chosen.apply(skip, block.residual(stream), index in chosen)
            stream = z if net.preact else torch.relu(z)
        stream = torch.relu(net.bn(stream)) if net.preact else stream
        logits = net.fc(torch.flatten(F.adaptive_avg_pool2d(stream, 1), 1))
        return torch.autograd.grad(F.cross_entropy(logits, y), source)[0]


STUDIES: dict[str, Callable[[str, int], Study]] = {
    "lesions": lesions,
    "pairs": pairs,
    "paths": sampled_paths,
    "spectrum": spectrum,
}
SIZES = {  # images of lesions, batch of gradients
    "quick": {"lesions": 4, "pairs": 4, "paths": 2, "spectrum": 2},
    "default": {"lesions": 1000, "pairs": 250, "paths": 32, "spectrum": 32},
    "full": {"lesions": 1000, "pairs": 1000, "paths": 32, "spectrum": 32},
}
NETS = ("basic", "preact")


def studies(scale: str) -> dict[str, Callable[[], Study]]:
    """What makes the study of every row, by the name of the row: "lesions", "preact-lesions" and so on."""
    return {
        f"preact-{name}" if block == "preact" else name: partial(make, block, SIZES[scale][name])
        for block in NETS
        for name, make in STUDIES.items()
    }
