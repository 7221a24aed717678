"""Finds a CUDA toolkit that can compile the kernels.

Used by `setup.py`, which runs this file without importing pathnet, and by the doctor: standard library only.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from glob import glob
from pathlib import Path


def candidates(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Folders in which a toolkit may stand, in the order in which they are tried."""
    usual = [*sorted(glob("/usr/local/cuda*"), reverse=True), "/opt/cuda"]
    return [home for home in (environ.get("CUDA_HOME"), environ.get("CUDA_PATH"), *_nvcc_homes(), *usual) if home]


def _nvcc_homes() -> list[str]:
    """Ask the nvcc on the PATH where it stands: it may be a wrapper around one in another folder."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return []
    dry_run = subprocess.run([nvcc, "--dryrun", "-c", "any.cu"], capture_output=True, text=True)
    return re.findall(r"^#\$ TOP=(.+)$", dry_run.stderr, re.MULTILINE)


def version(home: str) -> str | None:
    """Version of the toolkit in this folder, as "13.0"; None unless it has nvcc, headers and a runtime."""
    root = Path(home)
    runtimes = [*root.glob("lib*/libcudart*"), *root.glob("targets/*/lib/libcudart*")]
    nvcc = root / "bin" / "nvcc"
    if not (root / "include" / "cuda_runtime.h").is_file() or not runtimes or not nvcc.is_file():
        return None
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    release = re.search(r"release (\d+\.\d+)", text)
    return release[1] if release else None


def installed(homes: Iterable[str] | None = None) -> dict[str, str]:
    """Usable toolkits, folder -> version, each folder once."""
    homes = dict.fromkeys(os.path.realpath(home) for home in (candidates() if homes is None else homes))
    return {home: number for home in homes if (number := version(home))}


def find(cuda: str, homes: Iterable[str] | None = None) -> str:
    """The first toolkit of the major version of torch's CUDA; LookupError with the remedy if none is."""
    toolkits = installed(homes)
    for home, number in toolkits.items():
        if number.split(".")[0] == cuda.split(".")[0]:
            return home
    found = ", ".join(f"{number} in {home}" for home, number in toolkits.items()) or "none"
    raise LookupError(
        f"torch is built for CUDA {cuda}, so a CUDA toolkit of that major version with nvcc, headers and a "
        f"runtime library is needed (found: {found}). Install one, set CUDA_HOME to its folder if that is an "
        "unusual place, and install pathnet again."
    )
