"""What of pathnet works on this machine, what does not, why, and what to do about it."""

from __future__ import annotations

import platform
import textwrap
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch

from pathnet import extension, toolkit
from pathnet.backend import BACKENDS, use_backend
from pathnet.models import PathResNet

WIDTH = 110


@dataclass(frozen=True)
class Check:
    """One backend on one device; `reason` says why it does not work and what to do, None if it works."""

    backend: str
    device: str
    reason: str | None = None

    @property
    def works(self) -> bool:
        return self.reason is None


@dataclass(frozen=True)
class Report:
    """The findings as data; `str` gives them as a page."""

    versions: dict[str, str]  # of pathnet, Python, torch and what they run on
    extensions: dict[str, str]  # device -> how it was built, or why it is missing
    toolkits: dict[str, str]  # folder -> version of the CUDA toolkit there
    devices: dict[str, str]  # cpu, cuda:0, ... -> its name
    checks: tuple[Check, ...]

    def __str__(self) -> str:
        sections = {
            "Versions": self.versions,
            "Compiled extensions": self.extensions,
            "CUDA toolkits": self.toolkits or {"none": "needed only to compile the CUDA kernels"},
            "Devices": self.devices,
            "Backends": {f"{c.backend} on {c.device}": c.reason or "works" for c in self.checks},
        }
        return "\n\n".join(_section(title, rows) for title, rows in sections.items())


def doctor() -> Report:
    """Look at the build, the toolkits and the devices, and run each backend once on each device."""
    devices = {"cpu": _processor()}
    devices |= {f"cuda:{i}": torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
    gpus = [device for device in devices if device != "cpu"]
    checks = [Check("reference", device, _try("reference", device)) for device in devices]
    checks.append(Check("cpu", "cpu", extension.why_not("cpu") or _try("cpu", "cpu")))
    for backend, reason in (("triton", _no_triton), ("cuda", _no_cuda)):
        checks += [Check(backend, gpu, reason(gpu)) for gpu in gpus] or [Check(backend, "cuda", _no_gpu())]
    return Report(
        versions=_versions(),
        extensions={device: _build(device) for device in extension.EXTENSIONS},
        toolkits=toolkit.installed(),
        devices=devices,
        checks=tuple(sorted(checks, key=lambda check: BACKENDS[::-1].index(check.backend))),
    )


def _try(backend: str, device: str, train: bool = False, tolerance: float = 1e-3) -> str | None:
    """Run a small network and compare it with the reference on the CPU; the reason if that fails.

    With `train` the gradients of the weights are compared too.
    """
    net = PathResNet(depth=8).train(train)
    x = torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)
    try:
        expected, results = _results(net, x, "reference", train), _results(net.to(device), x.to(device), backend, train)
        torch.testing.assert_close(results, expected, rtol=tolerance, atol=tolerance)
    except Exception as error:  # whatever it is, it belongs into the report
        return f"A small network failed: {error}"
    return None


def _results(net: PathResNet, x: torch.Tensor, backend: str, train: bool) -> list[torch.Tensor]:
    """The output, and with `train` the gradients of its square sum, on the CPU."""
    with torch.set_grad_enabled(train), use_backend(backend):
        y = net(x)
    grads = torch.autograd.grad(y.square().sum(), list(net.parameters())) if train else ()
    return [t.detach().cpu() for t in (y, *grads)]


def _no_triton(gpu: str) -> str | None:
    """Train a small network by the Triton kernels, whose products may be TF32."""
    return _try("triton", gpu, train=True, tolerance=5e-2)


def _no_cuda(gpu: str) -> str | None:
    """Launch the probe kernel on the GPU, then a small network; the reason if either fails."""
    if not extension.available("cuda"):
        return extension.why_not("cuda") or ""
    try:
        torch.ops.pathnet.probe(torch.zeros(1, device=gpu)).item()
    except RuntimeError as error:
        return f"The probe kernel failed: {error} Install pathnet again here, so that it is compiled for {gpu}."
    return _try("cuda", gpu, tolerance=1e-2)  # evaluation, the one op that CUDA has; float32 is multiplied in TF32


def _no_gpu() -> str:
    if torch.version.cuda is None:
        return "This torch is built without CUDA. Where there is an NVIDIA GPU, install a CUDA build of torch."
    return "torch sees no GPU. Where there is one, nvidia-smi tells whether its driver suits this torch."


def _versions() -> dict[str, str]:
    try:
        installed = version("pathnet")
    except PackageNotFoundError:
        installed = "run from its source folder, not installed"
    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    return {
        "pathnet": installed,
        "Python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "torch": f"{torch.__version__}, {cuda}, {torch.get_num_threads()} threads",
    }


def _build(device: str) -> str:
    facts = extension.build_info().get(device)
    if facts is None:
        return extension.why_not(device) or ""
    shown = {
        "compiler": "compiler",
        "instructions": "instructions",
        "why_instructions": "chosen as",
        "cuda": "CUDA",
        "architectures": "for",
    }
    details = [f"{label} {facts[key]}" for key, label in shown.items() if key in facts]
    return ", ".join([f"built with torch {facts['torch']}", *details])


def _processor() -> str:
    return f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"


def _section(title: str, rows: dict[str, str]) -> str:
    margin = max(map(len, rows)) + 4
    lines = [
        textwrap.fill(text, WIDTH, initial_indent=f"  {name:<{margin - 2}}", subsequent_indent=" " * margin)
        for name, text in rows.items()
    ]
    return "\n".join([title, *lines])
