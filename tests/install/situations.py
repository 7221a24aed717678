"""Install pathnet in every situation that it promises to work in, each in a fresh virtual environment.

    python tests/install/situations.py                 # all of them (about half an hour, several GB of torch)
    python tests/install/situations.py cpu-torch none  # these

A situation passes if the install ends as promised, the package imports and a network gives the reference's
output. The table shows the seconds of the timed `pip install` of pathnet. Except for no-torch, torch and
the other requirements are there before: they are installed once a run and linked into each environment.
Where no CUDA toolkit stands, a CPU build with its reason is expected. Needs Python 3.11.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable
from functools import cache
from pathlib import Path

import tomllib

CHECKOUT = Path(__file__).resolve().parents[2]
CPU_TORCH = "torch==2.13.0+cpu"
CUDA_TORCH = "torch==2.14.1"
REPORT = """
import json, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import pathnet
import torch
from pathnet import extension
net, x = pathnet.PathResNet(depth=20).eval(), torch.randn(2, 3, 32, 32)
with torch.no_grad():
    y = net(x)
    with pathnet.use_backend("reference"):
        torch.testing.assert_close(y, net(x))
print(json.dumps({
    "cpu": extension.available("cpu"), "cuda": extension.available("cuda"), "torch": torch.__version__,
    "torch_cuda": torch.version.cuda, "why_not_cuda": extension.why_not("cuda"),
    "warnings": [str(w.message) for w in caught if "pathnet" in str(w.message)],
}))
"""


class Environment:
    """A fresh virtual environment with its own copy of the sources."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.sources, self.seconds = folder, folder / "sources", 0.0
        venv.create(folder / "venv", with_pip=True)
        self.python = str(folder / "venv" / "bin" / "python")
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        files = subprocess.run(listed, cwd=CHECKOUT, capture_output=True, check=True).stdout.split(b"\0")
        for name in filter(None, map(os.fsdecode, files)):
            if (CHECKOUT / name).is_file():
                (self.sources / name).parent.mkdir(parents=True, exist_ok=True)
                (self.sources / name).write_bytes((CHECKOUT / name).read_bytes())

    def prepare(self, torch: str) -> None:
        """Put this torch and all other requirements into the environment."""
        shutil.rmtree(_packages(self.folder))
        shutil.copytree(_prepared(torch), _packages(self.folder), copy_function=os.link)

    def pip(self, *args: str, **environ: str) -> str:
        """Run pip in the folder of the sources; its output. Raises RuntimeError with it where pip fails."""
        command = [self.python, "-m", "pip", *args, "--disable-pip-version-check"]
        clean = {
            key: value for key, value in os.environ.items() if key not in ("PATHNET_BUILD", "CUDA_HOME", "PYTHONPATH")
        }
        result = subprocess.run(
            command,
            cwd=self.sources,
            env=clean | environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if result.returncode:
            raise RuntimeError(result.stdout)
        return result.stdout

    def install(self, *what: str, **environ: str) -> dict:
        """`pip install` pathnet, timed; then what it says of itself."""
        start = time.monotonic()
        self.pip("install", *(what or ("-e", ".")), **environ)
        self.seconds += time.monotonic() - start
        return self.report()

    def refusal(self, **environ: str) -> str:
        """The output of an install that must fail."""
        try:
            self.pip("install", "-e", ".", **environ)
        except RuntimeError as failed:
            return str(failed)
        raise AssertionError(f"the install succeeded with {environ}")

    def report(self) -> dict:
        """Import pathnet from outside of the sources and ask it."""
        result = subprocess.run([self.python, "-c", REPORT], cwd=self.folder, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout.splitlines()[-1])


def expect(report: dict, *, cpu: bool, cuda: bool | None = None) -> None:
    """`cuda=None`: compiled, or a sentence that says why not."""
    assert report["cpu"] is cpu, report
    assert bool(report["warnings"]) is not cpu, report
    if cuda is None:
        assert report["cuda"] or "toolkit" in report["why_not_cuda"], report
    else:
        assert report["cuda"] is cuda, report


def no_torch(env: Environment) -> None:
    """No torch: pip brings the newest for the build and for the environment."""
    report = env.install()
    expect(report, cpu=True, cuda=None if report["torch_cuda"] else False)


def cpu_torch(env: Environment) -> None:
    """A CPU build of torch is there."""
    env.prepare(CPU_TORCH)
    report = env.install()
    expect(report, cpu=True, cuda=False)
    assert report["torch"].startswith("2.13.0"), report


def cuda_torch(env: Environment) -> None:
    """A CUDA build of torch, with or without a GPU."""
    env.prepare(CUDA_TORCH)
    expect(env.install(), cpu=True, cuda=None)


def torch_upgraded(env: Environment) -> None:
    """torch is upgraded after the build: the same file loads."""
    cpu_torch(env)
    built = _extension(env).stat()
    env.pip("install", CUDA_TORCH)
    report = env.report()
    expect(report, cpu=True, cuda=False)
    assert report["torch"].startswith("2.14.1") and _extension(env).stat() == built, report


def cuda_replaced(env: Environment) -> None:
    """The build knows CUDA, torch becomes a CPU build: the CPU operators stay."""
    cuda_torch(env)
    env.pip("install", CPU_TORCH)
    expect(env.report(), cpu=True, cuda=False)


def no_compiler(env: Environment) -> None:
    """No compiler on the PATH: pure Python, said once."""
    env.prepare(CPU_TORCH)
    report = env.install(PATH=str(Path(env.python).parent))
    expect(report, cpu=False, cuda=False)
    assert len(report["warnings"]) == 1 and "no C++ compiler" in report["warnings"][0], report
    assert "no C++ compiler" in env.refusal(PATH=str(Path(env.python).parent), PATHNET_BUILD="cpu")


def broken_code(env: Environment) -> None:
    """A compile error: `auto` installs pure Python and says so, `cpu` stops."""
    env.prepare(CPU_TORCH)
    with (env.sources / "csrc/cpu/stage_eval.cpp").open("a") as file:
        file.write("this is no C++\n")
    report = env.install()
    expect(report, cpu=False, cuda=False)
    assert "compiling pathnet._C failed" in report["warnings"][0], report
    assert "compiling pathnet._C failed" in env.refusal(PATHNET_BUILD="cpu")


def mode_none(env: Environment) -> None:
    """PATHNET_BUILD=none, also over an earlier build; then a value that does not exist."""
    cpu_torch(env)
    env.seconds = 0.0
    expect(env.install(PATHNET_BUILD="none"), cpu=False, cuda=False)
    assert "must be auto, cpu, cuda or none" in env.refusal(PATHNET_BUILD="gpu")


def mode_cpu(env: Environment) -> None:
    """PATHNET_BUILD=cpu."""
    env.prepare(CPU_TORCH)
    expect(env.install(PATHNET_BUILD="cpu"), cpu=True, cuda=False)


def mode_cuda(env: Environment) -> None:
    """PATHNET_BUILD=cuda: done with a CUDA build of torch, refused with a CPU one."""
    env.prepare(CUDA_TORCH)
    expect(env.install(PATHNET_BUILD="cuda"), cpu=True, cuda=True)
    other = Environment(env.folder / "other")
    other.prepare(CPU_TORCH)
    assert "was built without CUDA" in other.refusal(PATHNET_BUILD="cuda")


def wheel(env: Environment) -> None:
    """A wheel built beside one torch is installed beside another."""
    env.prepare(CPU_TORCH)
    env.pip("wheel", ".", "--no-deps", "-w", "wheels")
    (built,) = (env.sources / "wheels").iterdir()
    assert "cp310-abi3" in built.name, built.name
    other = Environment(env.folder / "other")
    other.prepare(CUDA_TORCH)
    expect(other.install(str(built)), cpu=True, cuda=False)
    env.seconds = other.seconds


def twice(env: Environment) -> None:
    """The same install again, nothing changed: nothing is compiled."""
    cpu_torch(env)
    objects = {file: file.stat().st_mtime_ns for file in (env.sources / "build").rglob("*.o")}
    env.seconds = 0.0
    expect(env.install(), cpu=True, cuda=False)
    assert objects and all(file.stat().st_mtime_ns == when for file, when in objects.items())


@cache
def _prepared(torch: str) -> Path:
    """The packages of an environment in which this torch and the requirements are installed."""
    folder = Path(tempfile.mkdtemp(prefix="prepared-", dir=_root()))
    requirements = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["dependencies"]
    venv.create(folder / "venv", with_pip=True)
    pip = [folder / "venv" / "bin" / "python", "-m", "pip", "install", "-q"]
    subprocess.run([*pip, torch, *requirements], check=True)
    return _packages(folder)


def _packages(folder: Path) -> Path:
    return next((folder / "venv" / "lib").glob("python*")) / "site-packages"


@cache
def _root() -> Path:
    """One temporary folder for all: links do not cross file systems."""
    return Path(tempfile.mkdtemp(prefix="pathnet-install-"))


def _extension(env: Environment) -> Path:
    (file,) = (env.sources / "pathnet").glob("_C.*")
    return file


SITUATIONS: dict[str, Callable[[Environment], None]] = {
    "no-torch": no_torch,
    "cpu-torch": cpu_torch,
    "cuda-torch": cuda_torch,
    "torch-upgraded": torch_upgraded,
    "cuda-replaced": cuda_replaced,
    "no-compiler": no_compiler,
    "broken-code": broken_code,
    "none": mode_none,
    "cpu": mode_cpu,
    "cuda": mode_cuda,
    "wheel": wheel,
    "twice": twice,
}


def main() -> int:
    """Run the named situations and print one row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SITUATIONS)} (all)")
    names = parser.parse_args().names or list(SITUATIONS)
    if unknown := set(names) - set(SITUATIONS):
        parser.error(f"unknown situations: {', '.join(sorted(unknown))}")
    failures = {}
    print(f"{'situation':<16}{'result':<8}{'seconds':>8}  what", flush=True)
    for name in names:
        situation = SITUATIONS[name]
        with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=_root()) as folder:
            env = Environment(Path(folder))
            try:
                situation(env)
            except (AssertionError, RuntimeError) as error:
                failures[name] = error
        result = "FAILED" if name in failures else "passed"
        print(f"{name:<16}{result:<8}{env.seconds:>8.1f}  {situation.__doc__}", flush=True)
    shutil.rmtree(_root())
    for name, error in failures.items():
        print(f"\n{name}: {str(error)[-4000:]}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
