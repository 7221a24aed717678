"""Triton kernels of training, installed as pathnet.kernels (the bare name belongs to another project).

Activations are [N, C, H, W] in channels_last memory: M = N H W pixels of C values. docs/gpu-kernels.md explains them.
"""
