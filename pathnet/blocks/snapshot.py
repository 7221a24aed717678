"""Whether modules are still what they were: asked before every call that uses what was described earlier."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from operator import itemgetter

from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from pathnet.blocks.shortcut import PadShortcut

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_READ: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Conv2d: ("_parameters", "stride", "padding", "dilation", "groups", "padding_mode"),
    nn.BatchNorm2d: ("_parameters", "_buffers", "training", "momentum", "eps"),
    nn.ReLU: ("inplace",),
    PadShortcut: ("stride", "before", "after"),
}  # the attributes that a description reads, beside hooks; of any other module it reads the children
_TENSORS = ("_parameters", "_buffers")
_CHILDREN = "_modules"


class Snapshot:
    """Modules, and all that decides how they are described: children, tensors by identity, settings, hooks.

    Tensors may change in place, which no description sees. A deep net has hundreds of modules and asks before every
    call, so what is asked of all of them runs in loops of the interpreter's own: half a microsecond a module.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._modules = [part for module in modules for part in module.modules()]
        self._kinds: list[type[nn.Module]] = list(dict.fromkeys(map(type, self._modules)))
        wanted = [_READ.get(type(module), (_CHILDREN,)) for module in self._modules]
        self._readers = [itemgetter(*_HOOKS, *names) for names in wanted]
        places = [(i, j, name) for i, names in enumerate(wanted) for j, name in enumerate(names, len(_HOOKS))]
        self._children = [(i, j) for i, j, name in places if name == _CHILDREN]
        self._tensors = [(i, j) for i, j, name in places if name in _TENSORS]
        self._before = self._read()
        self._alive = [list(d.values()) for d in self._dicts(self._before[-1])]  # so that no id is given anew

    def holds(self) -> bool:
        """Whether nothing has been swapped, hooked, switched or set since."""
        try:
            return self._read() == self._before
        except KeyError:  # an attribute is gone
            return False

    def _read(self) -> tuple:
        """What is compared: identities first, so that attributes are compared only where they hold the same things."""
        states = [module.__dict__ for module in self._modules]
        attributes = [reader(state) for reader, state in zip(self._readers, states, strict=True)]
        dicts = self._dicts(attributes)
        return (
            _has_any_global_hook(),
            list(map(type, self._modules)),
            [kind.forward for kind in self._kinds],
            ["forward" in state for state in states],
            [not (read[0] or read[1] or read[2] or read[3]) for read in attributes],  # no hooks
            list(map(id, chain.from_iterable(map(dict.values, dicts)))),
            list(chain.from_iterable(dicts[: len(self._children)])),
            attributes,
        )

    def _dicts(self, attributes: list[tuple]) -> list[dict]:
        return [attributes[i][j] for i, j in self._children] + [attributes[i][j] for i, j in self._tensors]
