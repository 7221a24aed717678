"""Machine code: what is read in it, its loops, and how many thread blocks a multiprocessor holds."""

from __future__ import annotations

import pytest

from pathnet.machine_code import CHIPS, resident_blocks
from pathnet.machine_code.loops import natural_loops, product_loops, scalar_share
from pathnet.machine_code.sass import ASYNC_COPIES, TENSOR_CORES, Code, parsed

LOOP = """
        /*0000*/                   LDGSTS.E.BYPASS.128 [R1], desc[UR4][R2.64] ;
.L_x_0:
        /*0010*/                   LDSM.16.M88.4 R4, [R8] ;
        /*0020*/                   FFMA R5, R6, R7, R5 ;
        /*0030*/                   HFMA2 R9, -RZ, RZ, 0, 0 ;
        /*0040*/                   HMMA.16816.F32.BF16 R12, R4, R10, R12 ;
        /*0050*/              @!P0 BRA `(.L_x_2) ;
.L_x_1:
        /*0060*/               @P1 BRA `(.L_x_0) ;
        /*0070*/                   FFMA R20, R21, R22, R20 ;
        /*0080*/                   EXIT ;
.L_x_2:
        /*0090*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R3], R2 ;
        /*00a0*/              @!P0 BRA `(.L_x_2) ;
        /*00b0*/                   BRA `(.L_x_1) ;
"""  # a loop, which waits out of line: the jump back from there closes no loop of its own


def code(text: str) -> Code:
    return Code(32, 0, *parsed(text))


def test_instructions_are_counted_with_and_without_a_predicate():
    read = code(LOOP)
    assert len(read.instructions) == 12 and read.count(TENSOR_CORES) == read.count(ASYNC_COPIES) == 1
    assert [instruction.predicate for instruction in read.instructions if instruction.predicate] == [
        "@!P0",
        "@P1",
        "@!P0",
    ]


def test_a_loop_is_what_lies_on_the_ways_back():
    read = code(LOOP)
    assert sorted(map(sorted, natural_loops(read))) == [[1, 2, 3, 4, 5, 6, 9, 10, 11], [9, 10]]
    (loop,) = product_loops(read)
    assert [read.instructions[index].name for index in loop].count("FFMA") == 1, "what follows is not part of it"


@pytest.mark.parametrize(
    "instruction, products",
    [
        ("HMMA.16816.F32.BF16", 64), ("HMMA.1688.F32.TF32", 32), ("HGMMA.64x16x8.F32.TF32", 64),
        ("HGMMA.64x128x16.F32", 1024), ("UTCHMMA", 64),
    ],  # a tcgen05 product whose shape is not told counts as the smallest
)  # fmt: skip
def test_the_scalar_share_counts_multiply_adds_of_a_thread(instruction, products):
    read = code(LOOP.replace("HMMA.16816.F32.BF16", instruction))
    assert scalar_share(read) == pytest.approx(1 / (1 + products))


def test_a_product_beside_the_tensor_cores_is_seen():
    """As many scalar multiply-adds as half of the tensor cores' products: one product of three."""
    planted = "\n".join(["        /*0020*/   FFMA R5, R6, R7, R5 ;"] * 32)
    assert scalar_share(code(LOOP.replace("        /*0020*/", planted + "\n        /*0020*/"))) > 0.3


def test_a_kernel_without_products_has_no_share():
    assert scalar_share(code(LOOP.replace("HMMA.16816.F32.BF16", "FADD"))) == 0


def test_a_product_outside_of_loops_counts_the_whole_kernel():
    straight = LOOP.replace("@P1 BRA `(.L_x_0)", "NOP")
    assert scalar_share(code(straight)) == pytest.approx(2 / 66)


@pytest.mark.parametrize(
    "arch, registers, shared, warps, blocks",
    [
        (80, 128, 0, 4, 4),  # registers: 65536 / (128 * 128)
        (80, 129, 0, 4, 3),  # 136 are handed out
        (90, 32, 0, 1, 32),  # thread blocks
        (86, 16, 0, 4, 12),  # warps: 48
        (89, 40, 40 << 10, 4, 2),  # shared memory: 100 KiB, and 1 KiB lost a block
        (100, 40, 227 << 10, 4, 1),
        (80, 255, 0, 16, 0),
    ],
)
def test_what_a_multiprocessor_holds(arch, registers, shared, warps, blocks):
    assert resident_blocks(arch, registers, shared, warps) == blocks


def test_every_chip_of_the_command_is_known():
    from pathnet.machine_code import ARCHS

    assert set(ARCHS) <= set(CHIPS)


@pytest.mark.parametrize(
    "descriptor, products",
    [("0x8110490", 128 * 64 * 16 / 128), ("0x4040010", 64 * 16 * 16 / 128), ("0x8110910", 128 * 64 * 8 / 128),
     ("0x40004040", 64), ("0x0", 64)],
)  # fmt: skip
def test_the_shape_of_a_tcgen05_product_is_read_in_its_descriptor(descriptor, products):
    text = LOOP.replace("HMMA.16816.F32.BF16 R12, R4, R10, R12", "UTCHMMA tmem[UR1], idesc[UR7], UPT")
    moved = f"UMOV UR7, {descriptor} ;\n        /*0005*/                   UMOV UR8, 0x1"
    read = code(text.replace("LDSM.16.M88.4 R4, [R8]", moved))
    assert scalar_share(read) == pytest.approx(1 / (1 + products))
