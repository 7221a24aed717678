"""A whole CIFAR net in evaluation, image to logits, in one launch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pathnet import backend, extension
from pathnet.backend import choose
from pathnet.ops.net_eval_limits import IMAGE_CHANNELS, MOST_PIXELS, missing_memory, unfit_image
from pathnet.ops.net_eval_pack import pack
from pathnet.ops.schemas import library
from pathnet.reference import Block, Conv, Norm, Pad, Relu
from pathnet.reference.layers import Layer
from pathnet.route import Route

FORMS: dict[tuple[type, ...], bool] = {
    (Conv, Norm, Relu, Conv, Norm): False,
    (Norm, Relu, Conv, Norm, Relu, Conv): True,
}  # layers of f -> whether it is a pre-activation block


class Net(NamedTuple):
    """A whole net as values."""

    stem: tuple[Layer, ...]  # a convolution; batch norm and ReLU after it in post-activation nets
    stages: tuple[tuple[Block, ...], ...]
    last: tuple[Layer, ...]  # batch norm and ReLU before the pooling of pre-activation nets
    fc: tuple[Tensor, Tensor]  # weight [classes, C], bias [classes]

    @property
    def blocks(self) -> list[Block]:
        return [block for stage in self.stages for block in stage]


def runs_whole(x: Tensor, net: Net | None) -> bool:
    """Whether `net_eval` should run x; raises RuntimeError if the backend "cuda" is forced and cannot."""
    if backend.forced() not in (None, "cuda"):
        return False
    return choose("net_eval", SUPPORTS, x, net) == "cuda"


def net_eval(x: Tensor, net: Net, route: Route | None = None, order: Sequence[int] | None = None) -> Tensor:
    """Logits [N, classes] of x [N, channels, H, W]: the stem, all blocks under `route` in `order`, pooling, classifier.

    x_i = act(h_i(x_{i-1}) + s_i f_i(x_{i-1})) with the residual stream x_i in float32, products in x's dtype (float32:
    TF32). Source: Veit et al. 2016, section 3.
    """
    blocks = len(net.blocks)
    gates = torch.ones(blocks, dtype=torch.int8) if route is None else route.gates
    scales = torch.ones(blocks) if route is None else route.multiplier.float()
    masks = max(table.shape[0] if table.dim() == 2 else 1 for table in (gates, scales))
    gates, scales = gates.expand(masks, blocks), scales.expand(masks, blocks)
    return _launch(x, net, gates, scales, _order(order, masks, blocks), repeat=1)


def net_eval_masks(
    x: Tensor, net: Net, gates: Tensor, scales: Tensor, orders: Sequence[Sequence[int] | None]
) -> Tensor:
    """Logits [N, masks, classes] of every image under each of `masks` gates: a batch of lesions is one launch.

    Shapes: gates int8 and scales [masks, blocks], a column a block; orders: for each mask the block at each position.
    """
    masks, blocks = gates.shape
    order = torch.cat([_order(each, 1, blocks) for each in orders]) if masks else torch.empty(0, blocks).int()
    return _launch(x, net, gates, scales.float(), order, repeat=masks).view(len(x), masks, -1)


def _order(order: Sequence[int] | None, masks: int, blocks: int) -> Tensor:
    places = range(blocks) if order is None else order
    return torch.tensor([*places], dtype=torch.int32).expand(masks, blocks)


def _launch(x: Tensor, net: Net, gates: Tensor, scales: Tensor, order: Tensor, repeat: int) -> Tensor:
    """Tables go in with a column a position."""
    conv, norm = net.stem[0], net.stem[1] if len(net.stem) > 1 else None
    last = net.last[0] if net.last else None
    packed = pack((conv, norm), net.blocks, last, net.fc, x.dtype)  # type: ignore[arg-type]  # supports_cuda has looked
    pads = [layer.before for stage in net.stages[1:] for layer in stage[0].shortcut if isinstance(layer, Pad)]
    index = order.long()
    tables = [gates.gather(1, index), order, scales.gather(1, index)]
    return torch.ops.pathnet.net_eval(
        x,
        packed.weights,
        packed.first_slice,
        packed.vectors,
        packed.classifier,
        *(table.contiguous().to(x.device, non_blocking=True) for table in tables),
        repeat,
        [len(stage) for stage in net.stages],
        int(packed.projects),
        pads or [0, 0],
        norm is None,
    )


def supports_cuda(x: Tensor, net: Net | None) -> str | None:
    """Why the CUDA kernel cannot run this net, in a sentence; None if it can."""
    if not extension.available("cuda"):
        return extension.why_not("cuda")
    if x.device.type != "cuda":
        return f"x is on {x.device}, and this kernel reads the memory of an NVIDIA GPU"
    if torch.is_autocast_enabled("cuda"):
        return "autocast chooses another dtype than x's; call net.bfloat16() or net.half() instead"
    reason = unfit(x, net)
    if reason is not None or net is None:
        return reason
    capability = torch.cuda.get_device_capability(x.device)
    return missing_memory(capability, x.dtype, x.shape[-2], x.shape[-1], net.fc[0].shape[1] // 4)


def unfit(x: Tensor, net: Net | None) -> str | None:
    """What of x and the net the kernel does not know, whatever the GPU."""
    if net is None:
        return "the net has a hook, a changed child or a stem that is no single 3x3 convolution"
    if x.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        return f"x is {x.dtype}, and tensor cores multiply bfloat16, float16 and TF32"
    if x.dtype == torch.float32 and not torch.backends.cudnn.allow_tf32:
        return "float32 is multiplied in TF32, which torch.backends.cudnn.allow_tf32 = False forbids"
    width = net.stem[0].weight.shape[0] if isinstance(net.stem[0], Conv) else 0
    if width not in MOST_PIXELS:
        there = " and ".join(map(str, MOST_PIXELS))
        return f"the first stage has {width} channels, and this kernel is compiled for {there}"
    return (
        _unfit_stem(x, net, width) or _unfit_stages(net, x.dtype, width) or unfit_image(x.shape[-2], x.shape[-1], width)
    )


def _unfit_stem(x: Tensor, net: Net, width: int) -> str | None:
    kinds = tuple(type(layer) for layer in net.stem)
    preact = kinds == (Conv,)
    if not preact and kinds != (Conv, Norm, Relu):
        return "the stem is neither a convolution alone nor one with batch norm and ReLU"
    conv = net.stem[0]
    assert isinstance(conv, Conv)
    if conv.weight.shape[1] > IMAGE_CHANNELS:
        return f"images have {conv.weight.shape[1]} channels, and this kernel takes at most {IMAGE_CHANNELS}"
    if tuple(type(layer) for layer in net.last) != ((Norm, Relu) if preact else ()):
        return "what stands before the pooling does not fit the stem: batch norm and ReLU in pre-activation nets alone"
    if net.fc[0].shape[1] != 4 * width:
        return f"the classifier takes {net.fc[0].shape[1]} channels, and this kernel ends with {4 * width}"
    reason = _unfit_conv(conv, conv.weight.shape[1], width, 1, 3, x.dtype)
    return reason or next((_unfit_norm(layer) for layer in (*net.stem, *net.last) if isinstance(layer, Norm)), None)


def _unfit_stages(net: Net, dtype: torch.dtype, width: int) -> str | None:
    if len(net.stages) != 3 or not all(net.stages):
        return f"the net has {len(net.stages)} stages, and this kernel runs three with at least one block each"
    projects = [isinstance(stage[0].shortcut[0], Conv) for stage in net.stages[1:] if stage[0].shortcut]
    if any(projects) and not all(projects):
        return "one strided block projects and the other pads"
    inside = width
    for number, stage in enumerate(net.stages):
        for i, block in enumerate(stage):
            stride = 2 if number > 0 and i == 0 else 1
            reason = _unfit_block(block, inside, width << number, stride, len(net.stem) == 1, dtype)
            if reason:
                return reason
            inside = width << number
    return None


def _unfit_block(block: Block, inside: int, width: int, stride: int, preact: bool, dtype: torch.dtype) -> str | None:
    if FORMS.get(tuple(type(layer) for layer in block.residual)) is not preact or (block.act is None) is not preact:
        return "a block is neither basic nor pre-activation as its stem is"
    convs = [layer for layer in block.residual if isinstance(layer, Conv)]
    reason = _unfit_conv(convs[0], inside, width, stride, 3, dtype) or _unfit_conv(convs[1], width, width, 1, 3, dtype)
    norms = [layer for layer in (*block.residual, *block.shortcut) if isinstance(layer, Norm)]
    return (
        reason
        or _unfit_shortcut(block, inside, width, stride, dtype)
        or next(filter(None, map(_unfit_norm, norms)), None)
    )


def _unfit_shortcut(block: Block, inside: int, width: int, stride: int, dtype: torch.dtype) -> str | None:
    kinds = tuple(type(layer) for layer in block.shortcut)
    if stride == 1:
        return None if kinds == () else "a block that keeps its shape has a shortcut other than the identity"
    first = block.shortcut[0] if block.shortcut else None
    if isinstance(first, Pad) and len(kinds) == 1:
        fits = first.stride == stride and first.before + first.after == width - inside and first.before % 2 == 0
        return None if fits else f"a shortcut pads as {tuple(first)}; the zero channels before must be an even number"
    if not isinstance(first, Conv) or kinds != ((Conv,) if block.act is None else (Conv, Norm)):
        return "a strided block's shortcut is neither zero padding nor a 1x1 convolution"
    return _unfit_conv(first, inside, width, stride, 1, dtype)


def _unfit_conv(conv: Conv, inside: int, out: int, stride: int, kernel: int, dtype: torch.dtype) -> str | None:
    if conv.weight.dtype != dtype:
        return f"weights are {conv.weight.dtype} and x is {dtype}"
    is_there = tuple(conv.weight.shape), conv.bias is None, conv.stride, conv.padding, conv.dilation, conv.groups
    padding = (kernel // 2, kernel // 2)
    if is_there == ((out, inside, kernel, kernel), True, (stride, stride), padding, (1, 1), 1):
        return None
    return (
        f"a convolution has the weights {list(conv.weight.shape)} and the stride {conv.stride}, where this kernel "
        f"needs {[out, inside, kernel, kernel]} with stride {stride}, padding {kernel // 2} and no bias"
    )


def _unfit_norm(norm: Norm) -> str | None:
    if norm.batch_stats:
        return "a batch norm uses batch statistics (it is in training mode or tracks none)"
    return "a batch norm has no affine weights" if norm.weight is None else None


SUPPORTS = {"cuda": supports_cuda, "reference": lambda *call: None}


def _fake(x, weights, first_slice, vectors, classifier, gates, order, scales, repeat, stages, slices, pads, preact):
    return x.new_empty((len(x) * repeat, classifier.numel() // (vectors.shape[2] + 1)))


torch.library.register_fake("pathnet::net_eval", _fake, lib=library)
