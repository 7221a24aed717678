"""Triton kernels, installed as pathnet.kernels (the bare name belongs to another project)."""
