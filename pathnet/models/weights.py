"""Load trained weights, whatever their usual spelling, and say exactly what does not fit."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
_OPTIONAL = "num_batches_tracked"  # older files lack it, and no result depends on it


def load_weights(net: nn.Module, source: str | PathLike | Mapping[str, object]) -> None:
    """Load a state dict, or a file that holds one, into `net`.

    Reads .pt, .pth and .th without running any code in them, and .safetensors. Accepts a `module.` prefix, a wrapping
    `state_dict`, and `linear.` for `fc.`. Raises FileNotFoundError or ValueError; where weights do not fit, the message
    names every missing, unexpected and misshapen key.
    """
    where = "the given mapping" if isinstance(source, Mapping) else str(source)
    weights = read_weights(source)
    _check_fit(net.state_dict(), weights, where)
    net.load_state_dict(weights, strict=False)


def read_weights(source: str | PathLike | Mapping[str, object]) -> dict[str, Any]:
    """The state dict that `source` is or holds, in torchvision's names; raises as `load_weights`."""
    where = "the given mapping" if isinstance(source, Mapping) else str(source)
    loaded = source if isinstance(source, Mapping) else _read(Path(source))
    return {_spelling(name): value for name, value in _unwrap(loaded, where).items()}


def _read(path: Path) -> Mapping[str, object]:
    if not path.is_file():
        raise FileNotFoundError(f"weights must be a file, but there is none at {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} holds more than tensors and is not read, since loading it could run code") from error
    except Exception as error:
        raise ValueError(f"{path} is no readable weights file, it may be truncated: {error}") from error


def _unwrap(loaded: object, where: str) -> dict[str, object]:
    for wrapper in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping) or not any(isinstance(value, Tensor) for value in loaded.values()):
        raise ValueError(f"{where} must hold a state dict (names and tensors), got {type(loaded).__name__}")
    return dict(loaded)


def _spelling(name: str) -> str:
    name = name.removeprefix("module.")
    return "fc." + name.removeprefix("linear.") if name.startswith("linear.") else name


def _check_fit(expected: Mapping[str, object], weights: Mapping[str, object], where: str) -> None:
    wanted, given = _shapes(expected), _shapes(weights)
    missing = [name for name in wanted if name not in given and not name.endswith(_OPTIONAL)]
    unexpected = [name for name in given if name not in wanted]
    misshapen = [
        f"{name} {given[name]} instead of {shape}"
        for name, shape in wanted.items()
        if name in given and given[name] != shape
    ]
    complaints = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    text = "; ".join(f"{what}: {', '.join(names)}" for what, names in complaints.items() if names)
    if text:
        raise ValueError(f"the weights of {where} do not fit this net. {text}. Make the net that they were trained in")


def _shapes(values: Mapping[str, object]) -> dict[str, list[int]]:
    """The shape of each tensor; what is no tensor (extra state) is left out."""
    return {name: list(value.shape) for name, value in values.items() if isinstance(value, Tensor)}
