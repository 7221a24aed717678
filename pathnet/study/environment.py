"""What a study ran on: versions, threads and machine."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


def pathnet_version() -> str:
    """Version of the installed distribution; "source tree" where pathnet runs without being installed."""
    try:
        return version("pathnet")
    except PackageNotFoundError:
        return "source tree"


def environment() -> dict[str, str | int]:
    """Versions, threads and machine, ready for the results and the report."""
    return {
        "pathnet": pathnet_version(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "processors": os.cpu_count() or 1,
        "processor": _processor(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"
