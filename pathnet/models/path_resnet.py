"""Residual networks with a gate at every block."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from pathnet.blocks import BLOCKS, ResidualBlock, Stage, run_cifar_stem, run_imagenet_stem, run_modules
from pathnet.blocks.shortcut import SHORTCUTS
from pathnet.gates import Paths
from pathnet.models.chain import in_one_chain, run_chain
from pathnet.models.draws import Draws
from pathnet.models.resolve import check_images, check_paths, resolve
from pathnet.models.sizes import check_choice, check_recompute, stage_sizes
from pathnet.models.whole import in_one_launch
from pathnet.ops.net_eval import net_eval
from pathnet.route import Route
from pathnet.samplers import Sampler

EXTRA_STATE = "_extra_state"


class PathResNet(nn.Module):
    """A residual network whose 2^n paths can be switched, block by block, forward and backward.

    x_i = act(h_i(x_{i-1}) + s_i f_i(x_{i-1})), i = 1..n, gated by `Paths`; without paths a plain ResNet.
    Shapes: x [N, in_channels, H, W] -> logits [N, num_classes]. Parameter names are torchvision's.

    `depth`: 6n+2 for CIFAR nets (9n+2 with bottlenecks); 18, 34, 50, 101 or 152 for `stem="imagenet"`.
    `block`: "basic", "preact", "bottleneck" or "preact_bottleneck". `shortcut`: "pad", "pad_end" or "conv". `width`:
    channels of the first stage. `paths`: a `Paths` or a sampler. `bn`: whose statistics per-sample gates use, the
    "active" rows' or "all". `unused_grad`: "none" leaves the gradient of what a step does not train None, "zero" makes
    it zeros. `precision="bf16"`: in evaluation the CPU kernel rounds the operands of its Winograd products to bf16
    (docs/numerics.md); training and the other backends do not. None: everything in the input's dtype.
    `recompute="conv3"`: bottlenecks that Triton trains keep nothing of their last convolution for the backward, and of
    few channels never store it (docs/gpu-kernels.md); values mean the same, and other backends keep what they kept.

    Raises ValueError for a depth, block, stem or shortcut that does not exist, naming those that do, and for
    `recompute` with another block than "bottleneck".
    Sources: He et al. 2015, sections 3 and 4.2; He et al. 2016; Veit, Wilber, Belongie 2016.
    """

    def __init__(
        self,
        depth: int = 110,
        num_classes: int = 10,
        *,
        stem: str = "cifar",
        block: str | None = None,
        shortcut: str | None = None,
        width: int | None = None,
        in_channels: int = 3,
        paths: Paths | Sampler | None = None,
        bn: str = "active",
        unused_grad: str = "none",
        precision: str | None = None,
        recompute: str | None = None,
    ) -> None:
        super().__init__()
        check_choice("stem", stem, ("cifar", "imagenet"))
        cifar = stem == "cifar"
        block = block or ("basic" if cifar or depth in (18, 34) else "bottleneck")
        shortcut = shortcut or ("pad" if cifar else "conv")
        check_choice("block", block, tuple(BLOCKS))
        check_choice("shortcut", shortcut, SHORTCUTS)
        check_choice("bn", bn, ("active", "all"))
        check_choice("unused_grad", unused_grad, ("none", "zero"))
        check_choice("precision", precision, (None, "bf16"))
        check_recompute(recompute, block)
        sizes, kind = stage_sizes(depth, block, stem), BLOCKS[block]
        self.depth, self.row_statistics = depth, bn
        self.in_channels, self.smallest_image = in_channels, 4 if cifar else 32
        channels = width or (16 if cifar else 64)
        self._add_stem(in_channels, channels, cifar, preact=not kind.post_activation)
        self._add_stages(sizes, channels, kind, shortcut)
        parts: list[Stage | ResidualBlock] = [*self.stages, *self.blocks]
        for part in parts:
            part.zero_unused, part.precision = unused_grad == "zero", precision
        for own in self.blocks:
            own.recompute = recompute is not None
        self._add_head(num_classes, preact=not kind.post_activation)
        self._initialise()
        self._draws = Draws()
        self.paths = paths

    # ---- structure --------------------------------------------------------------------------------------------------

    def _add_stem(self, in_channels: int, channels: int, cifar: bool, preact: bool) -> None:
        kernel, stride, padding = (3, 1, 1) if cifar else (7, 2, 3)
        self.conv1 = nn.Conv2d(in_channels, channels, kernel, stride, padding, bias=False)
        self.bn1 = None if preact else nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = None if cifar else nn.MaxPool2d(3, 2, padding=1)

    def _add_stages(
        self,
        sizes: tuple[int, ...],
        channels: int,
        block: type[ResidualBlock],
        shortcut: str,
    ) -> None:
        self._stage_names = tuple(f"layer{i + 1}" for i in range(len(sizes)))
        inside = channels
        for i, (name, size) in enumerate(zip(self._stage_names, sizes, strict=True)):
            width, stage = channels * 2**i, []
            for j in range(size):
                stride = 2 if i > 0 and j == 0 else 1
                stage.append(block(inside, width, stride, shortcut))
                inside = width * block.expansion
            self.add_module(name, Stage(*stage))
        self.num_features = inside

    def _add_head(self, num_classes: int, preact: bool) -> None:
        self.bn = nn.BatchNorm2d(self.num_features) if preact else None
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(self.num_features, num_classes)

    def _initialise(self) -> None:
        """He initialisation of the convolutions, as torchvision does it."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @property
    def stages(self) -> tuple[Stage, ...]:
        return tuple(getattr(self, name) for name in self._stage_names)

    @property
    def blocks(self) -> tuple[ResidualBlock, ...]:
        """All residual blocks, in order."""
        return tuple(block for stage in self.stages for block in stage)  # type: ignore[misc]  # a Sequential of blocks

    @property
    def num_blocks(self) -> int:
        return sum(len(stage) for stage in self.stages)

    def swappable(self) -> list[list[int]]:
        """Groups of blocks of equal shape, which may stand in for one another."""
        groups: list[list[int]] = []
        for start, stage in self._numbered():
            groups.append([start + i for i, block in enumerate(stage) if block.has_identity_shortcut])
            groups += [[start + i] for i, block in enumerate(stage) if not block.has_identity_shortcut]
        return [group for group in groups if group]

    def _numbered(self) -> Iterator[tuple[int, Stage]]:
        start = 0
        for stage in self.stages:
            yield start, stage
            start += len(stage)

    # ---- paths ------------------------------------------------------------------------------------------------------

    @property
    def paths(self) -> Paths | Sampler | None:
        """What gates the net where no `paths=` is given: fixed paths, or a sampler that draws in `train()`."""
        return self._paths

    @paths.setter
    def paths(self, paths: Paths | Sampler | None) -> None:
        check_paths(paths, self.num_blocks)
        self._paths = paths
        self._sampler_text = repr(paths)  # what a compiled graph carries

    # ---- running ----------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor, paths: Paths | None = None) -> Tensor:
        """Logits [N, num_classes] of images x [N, in_channels, H, W], through `paths` or those of `self.paths`.

        Raises TypeError for integer or complex images, ValueError for a wrong shape, for images or batches that are too
        small, and for paths of another net or batch.
        """
        check_images(x, self)
        route, order = resolve(self, x, paths)
        whole = None if route is not None and route.live else in_one_launch(self, x)
        if whole is not None:
            return net_eval(x, whole, route, order)
        update = route is None or route.update
        chain = in_one_chain(self, x, route)
        if chain is not None:
            return self.head(run_chain(x, chain, route, order), update)
        x = self.stem(x, update)
        x = self.through(x, range(self.num_blocks) if order is None else order, route)
        return self.head(x, update)

    def stem(self, x: Tensor, update: bool = True) -> Tensor:
        """What stands before the blocks; `update` says whether running statistics move."""
        if self.maxpool is None:
            act = None if self.bn1 is None else self.relu
            return run_cifar_stem(self.conv1, self.bn1, act, x, update)
        if self.bn1 is not None:
            return run_imagenet_stem(self.conv1, self.bn1, self.relu, self.maxpool, x, update)
        return run_modules((self.conv1, self.maxpool), x, update)

    def through(self, x: Tensor, order: Sequence[int], route: Route | None = None) -> Tensor:
        """Run the blocks named in `order`, and no others, on x [N, C, H, W] as it stands before the first of them.

        `order` goes from stage to stage; `route` has a column for every block of the net.
        """
        routes = [None] * len(self.stages) if route is None else route.split([len(stage) for stage in self.stages])
        for (start, stage), part in zip(self._numbered(), routes, strict=True):
            places = [block - start for block in order if start <= block < start + len(stage)]
            if places:
                x = stage(x, route=part, order=places)
        return x

    def head(self, x: Tensor, update: bool = True) -> Tensor:
        """What stands after the blocks: logits [N, num_classes] of x [N, num_features, H, W]."""
        x = x if self.bn is None else run_modules((self.bn, self.relu), x, update)
        return self.fc(torch.flatten(self.avgpool(x), 1))

    # ---- the draw counter -------------------------------------------------------------------------------------------

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if isinstance(self.paths, Sampler):
            destination[prefix + EXTRA_STATE] = {
                "sampler": repr(self.paths),
                "step": self._draws.step.clone(),
            }

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        extra = state_dict.pop(prefix + EXTRA_STATE, None)
        if extra is not None:
            self._draws.step.copy_(extra["step"])
            if not isinstance(self.paths, Sampler):
                warnings.warn(
                    f"these weights were trained under {extra['sampler']}, but the net has no sampler, so its rule for "
                    f"evaluation is not applied; set net.paths = pathnet.samplers.{extra['sampler']}",
                    stacklevel=2,
                )
        super()._load_from_state_dict(state_dict, prefix, *args)
