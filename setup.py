"""Build pathnet: compile what this machine can compile, and keep one sentence on each part left out.

PATHNET_BUILD=auto (the default) never fails over a compiler or a CUDA toolkit; `cpu` and `cuda` succeed or
stop with that sentence; `none` installs pure Python. PATHNET_SANITIZE=1 is `cpu` with checks for tests.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import runpy
import shlex
import shutil
import site
import sys
import sysconfig
from glob import glob
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

NEEDED = {"auto": None, "cpu": "_C", "cuda": "_cuda", "none": None}  # mode -> the extension that must be built
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"  # one build runs on every torch from 2.10 on
FLAGS = {"cxx": ["-O3", "-fvisibility=hidden", STABLE_ABI], "nvcc": ["-O3", STABLE_ABI, "-DUSE_CUDA"]}
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
CHECKS = [*SANITIZERS, "-fno-wrapv", "-fno-omit-frame-pointer", "-O1", "-g1"]  # Python's own -fwrapv hides overflows
SANITIZE = os.environ.get("PATHNET_SANITIZE") == "1"  # for .ci/run: loads only behind LD_PRELOAD of the sanitizers
ARCHITECTURES = "8.0;8.6;8.9;9.0;10.0+PTX"  # where no GPU can be asked; PTX serves what follows 10.0


def has_torch() -> bool:
    """Look for the environment's own torch too, which pip's isolated build hides."""
    sys.path += [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), site.getusersitepackages()]
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return False
    return tuple(map(int, re.findall(r"\d+", version)[:2])) >= (2, 10)


def require_compiler() -> None:
    compiler = shlex.split(os.environ.get("CXX", "c++"))[0]
    if shutil.which(compiler) is None:
        raise LookupError(
            f"there is no C++ compiler {compiler!r} on the PATH. Install one (such as `apt install g++`), or "
            "set CXX to yours, and install pathnet again."
        )


def require_cuda() -> None:
    """Point torch's builder at a toolkit that fits torch; this must happen before the builder is imported."""
    import torch

    if torch.version.cuda is None:
        raise LookupError(
            f"torch {torch.__version__} was built without CUDA. Where there is an NVIDIA GPU, install a CUDA "
            "build of torch and install pathnet again."
        )
    os.environ["CUDA_HOME"] = runpy.run_path("pathnet/toolkit.py")["find"](torch.version.cuda)
    if not torch.cuda.is_available():
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", ARCHITECTURES)


def plan(mode: str) -> tuple[list[str], dict[str, str]]:
    """The extensions to compile, and for each one left out the reason with its remedy."""
    if mode == "none":
        return [], dict.fromkeys(["_C", "_cuda"], "pathnet was installed with PATHNET_BUILD=none.")
    try:
        require_compiler()
    except LookupError as reason:
        return [], dict.fromkeys(["_C", "_cuda"], str(reason))
    if mode == "cpu":
        return ["_C"], {"_cuda": "pathnet was installed with PATHNET_BUILD=cpu."}
    try:
        require_cuda()
    except LookupError as reason:
        return ["_C"], {"_cuda": str(reason)}
    return ["_C", "_cuda"], {}


def keep_reasons(package: Path, left_out: dict[str, str]) -> None:
    """Write the reasons into the package, and remove what an earlier build left of the same extensions."""
    package.mkdir(parents=True, exist_ok=True)
    (package / "_left_out.json").write_text(json.dumps(left_out))
    for name in left_out:
        for stale in package.glob(f"{name}.*"):
            stale.unlink()


def compilation(mode: str) -> dict:
    """The arguments of setup() that compile the extensions or keep the reasons why not."""
    names, left_out = plan(mode)
    if NEEDED[mode] in left_out:
        sys.exit(f"pathnet: PATHNET_BUILD={mode} is impossible: {left_out[NEEDED[mode]]}")

    class BuildPy(build_py):
        def run(self):
            super().run()
            keep_reasons(Path("pathnet") if self.editable_mode else Path(self.build_lib, "pathnet"), left_out)

    if not names:
        return {"cmdclass": {"build_py": BuildPy}}

    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

    class BuildExt(BuildExtension):
        def finalize_options(self):
            super().finalize_options()
            # pip's is a new one each time: here ninja finds what it has done
            self.build_temp = "build/sanitized-objects" if SANITIZE else "build/objects"

        def run(self):
            super().run()  # after this, not before: a compilation that fails adds its reason
            keep_reasons(Path("pathnet") if self.inplace else Path(self.build_lib, "pathnet"), left_out)

        def build_extension(self, ext):
            try:
                super().build_extension(ext)
            except Exception as error:
                reason = f"compiling {ext.name} failed: read why with `python setup.py build_ext --inplace`."
                if mode != "auto":
                    sys.exit(f"pathnet: {reason}")
                print(f"pathnet: {reason} ({error})", file=sys.stderr)
                left_out[ext.name.removeprefix("pathnet.")] = reason

    kinds = {"_C": (CppExtension, "csrc/cpu/*.cpp"), "_cuda": (CUDAExtension, "csrc/cuda/*.cu")}
    options = {"extra_compile_args": FLAGS, "py_limited_api": True, "optional": True}
    if SANITIZE:
        options |= {"extra_compile_args": {"cxx": [*FLAGS["cxx"], *CHECKS]}, "extra_link_args": SANITIZERS}
    extensions = [
        kind(f"pathnet.{name}", sorted(glob(sources)), **options)
        for name, (kind, sources) in kinds.items()
        if name in names
    ]
    return {
        "ext_modules": extensions,
        "cmdclass": {"build_py": BuildPy, "build_ext": BuildExt},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


def main() -> None:
    mode = "cpu" if SANITIZE else os.environ.get("PATHNET_BUILD", "auto")
    if mode not in NEEDED:
        sys.exit(f"pathnet: PATHNET_BUILD must be auto, cpu, cuda or none, but it is {mode!r}.")
    ask_for_torch = mode != "none" and not has_torch()  # pip then installs it for the build and calls us again
    setup(
        packages=[*find_packages(include=["pathnet", "pathnet.*"]), "pathnet.kernels"],
        package_dir={"pathnet.kernels": "kernels"},
        **({"setup_requires": ["torch>=2.10"]} if ask_for_torch else compilation(mode)),
    )


if __name__ == "__main__":
    main()
