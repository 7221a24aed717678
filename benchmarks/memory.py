"""Memory of a step: what is kept for the backward, and the peak of what is allocated."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile


def saved_bytes(step: Callable[[], object], module: nn.Module) -> int:
    """Return the bytes of the distinct storages that autograd keeps for the backward of one step.

    Parameters and buffers of the module are not counted: they exist anyway. Every storage is held until the
    end, so that no address can come back under another tensor.
    """
    owned = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor.detach())
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(t.untyped_storage().nbytes() for address, t in kept.items() if address not in owned)


def peak_bytes(step: Callable[[], object]) -> int:
    """Return the peak of tensor memory during one step above what was allocated before it.

    It is the largest running sum over the profiler's allocation events, of which none is sampled or lost.
    Scratch that a library takes outside PyTorch's allocator (oneDNN's packing buffers) is not seen.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak
