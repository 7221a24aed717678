"""The compiled extensions: `pathnet._C` with the CPU operators and `pathnet._cuda` with the CUDA ones.

Each loads on its own, so that a CUDA problem never takes the CPU operators away. One that is missing is a
state and no error: the reference runs, and `why_not` says what to do.
"""

from __future__ import annotations

import importlib
import json
import warnings
from pathlib import Path
from types import ModuleType

import torch

EXTENSIONS = {"cpu": "_C", "cuda": "_cuda"}  # device -> module
CPU_ISA = "PATHNET_CPU_ISA"  # the instruction set asked for; read in csrc/cpu/isa.cpp when _C is loaded
LEFT_OUT = Path(__file__).with_name("_left_out.json")  # written by setup.py: module -> why it was not compiled

_modules: dict[str, ModuleType] = {}
_reasons: dict[str, str] = {}


def load(schema_version: int) -> None:
    """Load what was compiled, once; the schemas must have been defined before.

    An extension compiled for another `schema_version` counts as unavailable. Warns where an extension that
    could serve this torch is unavailable.
    """
    if _modules or _reasons:
        return
    for device, name in EXTENSIONS.items():
        module = _load_one(device, name, schema_version)
        if isinstance(module, str):
            _reasons[device] = module
        else:
            _modules[device] = module
    if "cpu" in _reasons:
        warnings.warn(f"pathnet runs on plain PyTorch: {_reasons['cpu']}", stacklevel=2)
    elif "cuda" in _reasons and torch.cuda.is_available():
        warnings.warn(f"pathnet has no compiled CUDA kernels here: {_reasons['cuda']}", stacklevel=2)


def available(device: str = "cpu") -> bool:
    """True if the operators for this device ("cpu" or "cuda") are compiled and loaded."""
    return device in _modules


def why_not(device: str = "cpu") -> str | None:
    """Why the operators for this device are missing and what to do, as sentences; None if they are there."""
    return _reasons.get(device)


def build_info() -> dict[str, dict[str, object]]:
    """Facts about each extension that is loaded, by device.

    `file`, `schema_version`, `torch` and `compiler`; for the CPU also `instructions` (a value of
    PATHNET_CPU_ISA) and `why_instructions`; for CUDA also `cuda` and `architectures`.
    """
    return {device: _facts(module) for device, module in _modules.items()}


def _load_one(device: str, name: str, schema_version: int) -> ModuleType | str:
    """The module, or the reason against it."""
    if device == "cuda" and torch.version.cuda is None:
        return (
            f"torch {torch.__version__} is built without CUDA. Where there is a GPU, install a CUDA build of "
            "torch and then pathnet again."
        )
    try:
        module = importlib.import_module(f"pathnet.{name}")
    except ModuleNotFoundError:
        return _why_left_out(name)
    except ImportError as error:
        if str(error).startswith(CPU_ISA):
            return f"pathnet.{name} is not loaded: {error}"
        return (
            f"pathnet.{name} does not load into torch {torch.__version__} ({error}). Install pathnet again "
            "with this torch."
        )
    if module.schema_version != schema_version:
        return (
            f"pathnet.{name} was compiled for version {module.schema_version} of the operators, and this is "
            f"version {schema_version}. Install pathnet again."
        )
    return module


def _why_left_out(name: str) -> str:
    try:
        reason = json.loads(LEFT_OUT.read_text())[name]
    except (OSError, ValueError, KeyError):
        return f"pathnet.{name} is not compiled. Run `pip install -e .` in the source folder of pathnet."
    return f"pathnet.{name} is not compiled: {reason}"


def _facts(module: ModuleType) -> dict[str, object]:
    keys = ("schema_version", "torch", "compiler", "instructions", "why_instructions", "cuda", "architectures")
    return {"file": module.__file__, **{key: getattr(module, key) for key in keys if hasattr(module, key)}}
