"""What compilers made of the GPU kernels, Triton's and CUDA C++ alike: registers, spills, occupancy, instructions."""

from pathnet.machine_code.chips import ARCHS, CHIPS, most_shared, resident_blocks
from pathnet.machine_code.compiled import Compiled, counted, unfit

__all__ = ["ARCHS", "CHIPS", "Compiled", "counted", "most_shared", "resident_blocks", "unfit"]
