"""The meaning of every op in plain PyTorch: any dtype, any device, ordinary autograd."""

from pathnet.reference.block import Block, Step, block, host_steps
from pathnet.reference.layers import Conv, Flow, Norm, Pad, Relu
from pathnet.reference.stage import stage

__all__ = ["Block", "Conv", "Flow", "Norm", "Pad", "Relu", "Step", "block", "host_steps", "stage"]
