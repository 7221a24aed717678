"""How many blocks each stage has, and the sentences for nets that do not exist."""

from __future__ import annotations

IMAGENET = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def stage_sizes(depth: int, block: str, stem: str) -> tuple[int, ...]:
    """Blocks per stage. Raises ValueError for a depth that the stem and block do not have."""
    if stem == "imagenet":
        return _imagenet_sizes(depth, block)
    step = 9 if "bottleneck" in block else 6
    if depth != int(depth) or depth < step + 2 or (depth - 2) % step:
        below = max((int(depth) - 2) // step, 1) * step + 2
        raise ValueError(
            f"depth must be {step}n+2 for a CIFAR net of {block} blocks, got {depth}; "
            f"the nearest are {below} and {below + step}"
        )
    return ((int(depth) - 2) // step,) * 3


def _imagenet_sizes(depth: int, block: str) -> tuple[int, ...]:
    if depth not in IMAGENET:
        raise ValueError(f"depth must be one of {', '.join(map(str, IMAGENET))} with stem='imagenet', got {depth}")
    if ("bottleneck" in block) != (depth >= 50):
        fitting = [str(d) for d in IMAGENET if (d >= 50) == ("bottleneck" in block)]
        raise ValueError(f"depth must be one of {', '.join(fitting)} with block={block!r}, got {depth}")
    return IMAGENET[depth]


def check_choice(name: str, value: str | None, allowed: tuple[str | None, ...]) -> None:
    """Raise ValueError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def check_recompute(recompute: str | None, block: str) -> None:
    """Raise ValueError unless blocks of this kind have what the backward shall make anew."""
    check_choice("recompute", recompute, (None, "conv3"))
    if recompute is not None and block != "bottleneck":
        raise ValueError(
            f"recompute='conv3' is for block='bottleneck' alone, got block={block!r}, which keeps no output of a wide "
            "1x1 convolution before a batch norm; leave recompute=None"
        )
