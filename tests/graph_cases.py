"""Cases of CUDA graphs: a step that is captured, and its gradients."""

from __future__ import annotations

import torch


def captured(function):
    """A graph of `function`, compiled and warmed up before, and what it returned."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = function()
    return graph, results


def gradients(y, x, stage):
    incoming = torch.linspace(-1, 2, y.numel(), dtype=y.dtype, device=y.device).sin().view(y.shape)
    return torch.autograd.grad(y, [x, *stage.parameters()], incoming, allow_unused=True)
