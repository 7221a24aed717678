"""What eager launches and touches on a GPU, as the project counts it, and the table of the documents."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import counts
from benchmarks.eager import FORWARD, FULL, OFF, BasicBlock, Bottleneck, PreActBlock
from benchmarks.eager_counter import cast_convolutions, count

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"


def counted(kind, gates):
    channels = 16 * kind.expansion
    with torch.device("meta"):
        blocks = [cast_convolutions(kind(channels, 16, 1, None)) for _ in gates]
        x = torch.empty(16, channels, 12, 12, dtype=torch.float16, memory_format=torch.channels_last)
    return count(blocks, gates, x), x.numel() * 2


@pytest.mark.parametrize(
    "kind, launches, least, again, saved",
    [(BasicBlock, 22, 38, 6, 4), (PreActBlock, 22, 38, 6, 4), (Bottleneck, 32, 30, 4.5, 3)],
)
def test_a_block_costs_eager_what_its_list_of_kernels_says(kind, launches, least, again, saved):
    """Basic, forward: conv 2, norm 2, ReLU 2, conv 2, norm 2, add 3, ReLU 2 T; backward: 3, 3, 4, 3, 3, 4 and 3 T."""
    (one, size), (two, _) = (counted(kind, [FULL] * blocks) for blocks in (1, 2))
    assert two.launches - one.launches == launches
    assert (two.large_bytes - one.large_bytes) / size == least
    assert (two.again_bytes - one.again_bytes) / size == again
    assert (two.saved_bytes - one.saved_bytes) / size == saved
    assert two.unique_bytes > two.large_bytes


def test_gates_save_launches_and_bytes():
    (full, size), (gated, _), (off, _) = (counted(BasicBlock, [FULL, gate]) for gate in (FULL, FORWARD, OFF))
    assert full.launches - off.launches == 22
    assert gated.launches - off.launches == 12  # seven passes, two casts, two counters, and the last ReLU's backward
    assert (gated.large_bytes - off.large_bytes) / size == 15 + 3
    assert (gated.saved_bytes - off.saved_bytes) / size == 1


def test_the_page_has_the_section_that_the_command_writes():
    page = PAGE.read_text()
    assert counts.section() in page and counts.with_section(page) == page
    assert counts.with_section(page.replace(counts.section() + "\n", "")) == page
