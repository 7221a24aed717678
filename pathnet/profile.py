"""Count launches, bytes read and written, and bytes saved for backward: of our kernels and PyTorch's alike."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pathnet.gates import Paths
from pathnet.ops.stage_train_cuda_count import Traffic, launches_of

if TYPE_CHECKING:  # Triton may be missing
    from pathnet.kernels.launch import Launch


@dataclass
class Kernel:
    """Totals of one kernel: bytes are unique, each distinct byte of an operand once a launch.

    A kernel of Triton, or of training by CUDA, also tells what its programs request, a byte each time that one of them
    asks for it, and its workspace: slots for partial sums, which the unique bytes leave out.
    """

    launches: int = 0
    read: int = 0
    written: int = 0
    requested: int = 0
    workspace: int = 0


@dataclass
class Profile:
    """What `profile` counted; `saved` is what the forward keeps for its backward, parameters apart."""

    kernels: dict[str, Kernel] = field(default_factory=dict)
    saved: int = 0

    @property
    def launches(self) -> int:
        return sum(kernel.launches for kernel in self.kernels.values())

    @property
    def read(self) -> int:
        return sum(kernel.read for kernel in self.kernels.values())

    @property
    def written(self) -> int:
        return sum(kernel.written for kernel in self.kernels.values())

    def __str__(self) -> str:
        """A row a kernel, in MiB; what programs request, and their workspace, where a kernel tells."""
        lines = [f"{'kernel':<44} {'launches':>8} {'read':>10} {'written':>10} {'requested':>10} {'workspace':>10}"]
        largest = sorted(self.kernels.items(), key=lambda item: -item[1].read - item[1].written)
        total = Kernel(self.launches, self.read, self.written)
        for name, kernel in [*largest, ("total", total)]:
            told = kernel.requested or kernel.workspace
            cells = kernel.read, kernel.written, *((kernel.requested, kernel.workspace) if told else ())
            lines.append(f"{name:<44} {kernel.launches:>8} " + " ".join(f"{cell / 2**20:>10.2f}" for cell in cells))
        return "\n".join([*lines, f"saved for backward: {self.saved / 2**20:.2f} MiB"])


def profile(net: nn.Module, x: Tensor, paths: Paths | None = None, *, backward: bool = False) -> Profile:
    """Run net(x, paths) once and count; with `backward` the gradient of the sum of its outputs too.

    Grad mode and train or eval count as they stand; a training forward updates running statistics as any forward
    does. An op that only makes a view launches nothing, and the bookkeeping of gates on the host is no launch. Gates on
    the device count as data: launches, bytes and what is saved are then those of all FULL.
    """
    return count(net, x, *(() if paths is None else (paths,)), backward=backward)


def count(net: nn.Module, x: Tensor, *args: object, backward: bool = False) -> Profile:
    """Count what net(x, *args) launches and saves, for any module."""
    profile, saved = Profile(), {}
    state = {_address(t) for t in (*net.parameters(), *net.buffers())}
    live = [paths.gates for paths in (*args, getattr(net, "paths", None)) if isinstance(paths, Paths) and paths.live]

    def pack(tensor: Tensor) -> Tensor:
        if _address(tensor) not in state:
            saved[_address(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    data = {*state, *map(_address, (x, *live))}
    with _Counter(profile, data), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = net(x, *args)
        profile.saved = sum(saved.values())
        if backward:
            y.sum().backward()
    return profile


class _Counter(TorchDispatchMode):
    """Counts every op that touches data: images, weights, and what was computed from them."""

    def __init__(self, profile: Profile, data: set[int]) -> None:
        super().__init__()
        self.profile, self.data = profile, data

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        with _observed(func) as launches:
            out = func(*args, **(kwargs or {}))
        inputs = _tensors((args, kwargs or {}))
        known = {_address(t) for t in inputs}
        fresh = [t for t in _tensors(out) if _address(t) not in known]
        if not self.data & known:  # gates and multipliers on the host
            self.data -= {_address(t) for t in fresh}
            return out
        self.data |= {_address(t) for t in fresh}
        written = fresh + _tensors(_written(func, args))
        if traffic := _traffic(func, args, launches):
            self._count_launches(func.namespace, traffic)
        elif written:
            kernel = self.profile.kernels.setdefault(str(func).removesuffix(".default"), Kernel())
            kernel.launches += 1
            kernel.read += _bytes(inputs)
            kernel.written += _bytes(written)
        return out

    def _count_launches(self, namespace: str, launches: Sequence[Traffic]) -> None:
        """An op that tells what it launches counts as these."""
        for launch in launches:
            kernel = self.profile.kernels.setdefault(f"{namespace}.{launch.name}", Kernel())
            kernel.launches += 1
            kernel.read += launch.read
            kernel.written += launch.written
            kernel.requested += launch.requested
            kernel.workspace += launch.workspace


def _language(func: torch._ops.OpOverload) -> str | None:
    """In which the op's kernels describe their launches; None where they do not."""
    name = func.name()
    return "triton" if "_triton" in name else "cuda" if "stage_train_cuda_" in name else None


def _observed(func: torch._ops.OpOverload) -> AbstractContextManager[Sequence[Launch]]:
    """The launches of Triton kernels inside the `with`; only this library's own ops make some."""
    if _language(func) != "triton":
        return nullcontext(())
    from pathnet.kernels.launch import observed

    return observed()


def _traffic(func: torch._ops.OpOverload, args: tuple, observed: Sequence[Launch]) -> list[Traffic]:
    """What an op has launched, as each launch describes itself, with its language before its name."""
    if _language(func) == "cuda":
        told = launches_of(func.overloadpacket.__name__, args)
        return [launch._replace(name=f"cuda {launch.name}") for launch in told]
    return [_traffic_of(launch) for launch in observed]


def _traffic_of(launch: Launch) -> Traffic:
    """What the vendor's library requests is not known."""
    vendor = launch.kernel is None
    requested = 0 if vendor else sum(launch.reads.values()) + sum(launch.writes.values())
    workspace = launch.unique(launch.reads | launch.writes, workspace=True)
    name = f"{'vendor' if vendor else 'triton'} {launch.name}"
    return Traffic(name, launch.unique(launch.reads), launch.unique(launch.writes), requested, workspace)


def _written(func: torch._ops.OpOverload, args: tuple) -> list[object]:
    """The arguments that an op writes in place."""
    pairs = zip(func._schema.arguments, args, strict=False)
    return [value for argument, value in pairs if argument.alias_info is not None and argument.alias_info.is_write]


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _bytes(tensors: list[Tensor]) -> int:
    distinct = {(_address(t), t.storage_offset(), tuple(t.shape)): t.numel() * t.element_size() for t in tensors}
    return sum(distinct.values())
