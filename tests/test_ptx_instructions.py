"""The interpreter of PTX: instructions of tensor cores, copies and atomics against a few lines of NumPy each.

What a lane holds of a matrix is written here element by element, as the PTX manual lists it ("Matrix Fragments for
mma.m16n8k16" and "mma.m16n8k8", "ldmatrix").
"""

from __future__ import annotations

import re

import numpy as np
import pytest
from ptx import floats
from ptx.launch import execute
from ptx.machine import Kernel
from ptx.memory import GlobalMemory
from ptx.parse import PtxError, parse

pytestmark = pytest.mark.ptx

TEXT = """
.version 9.0
.target sm_80
.address_size 64
.extern .shared .align 16 .b8 memory[];
.visible .entry tested(.param .u64 source, .param .u64 target)
{{
	.reg .pred %p<8>;
	.reg .f32 %f<16>;
	.reg .b32 %r<64>;
	.reg .b64 %rd<16>;
	ld.param.u64 %rd0, [source];
	ld.param.u64 %rd1, [target];
	mov.u32 %r0, %tid.x;
	mul.wide.u32 %rd2, %r0, {taken};
	add.s64 %rd3, %rd0, %rd2;
	mul.wide.u32 %rd4, %r0, {given};
	add.s64 %rd5, %rd1, %rd4;
	mov.u32 %r1, memory;
	{body}
	ret;
}}
"""  # each thread has its own {taken} bytes of the source and {given} of the target, at %rd3 and %rd5
LANE = np.arange(32)
GROUP, PLACE = LANE // 4, LANE % 4  # the manual's groupID and threadID_in_group


def run(body: str, source: np.ndarray, target: np.ndarray, blocks: int = 1, shared: int = 2048) -> np.ndarray:
    """`target` after a launch; source and target have a row for each of 32 threads."""
    memory = GlobalMemory()
    memory.add(source.ctypes.data, "source", source.reshape(-1).view(np.uint8), True, False)
    memory.add(target.ctypes.data, "target", target.reshape(-1).view(np.uint8), True, True)
    text = TEXT.format(body=body, taken=source[0].nbytes, given=target[0].nbytes)
    parameters = [np.array([array.ctypes.data], np.uint64).tobytes() for array in (source, target)]
    execute(Kernel(parse(text)), (blocks, 1, 1), (32, 1, 1), shared, parameters, memory)
    return target


def words(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.uint32)


# ---- mma -------------------------------------------------------------------------------------------------------------


def fragments(kind: str, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """What the lanes hold of a [16, k], b [k, 8] and c [16, 8]: words [32, 4 + 2 + 2 of nothing + 4]."""
    if kind == "tf32":
        rows, columns = [GROUP, GROUP + 8] * 2, [PLACE] * 2 + [PLACE + 4] * 2
        of_a = np.stack([a[row, column] for row, column in zip(rows, columns, strict=True)], 1).view(np.uint32)
        of_b = np.stack([b[PLACE, GROUP], b[PLACE + 4, GROUP]], 1).view(np.uint32)
    else:
        rows = [GROUP + 8 * (i // 2 % 2) for i in range(8)]
        columns = [2 * PLACE + i % 2 + 8 * (i // 4) for i in range(8)]
        of_a = np.stack([a[row, column] for row, column in zip(rows, columns, strict=True)], 1).view(np.uint32)
        of_b = np.stack([b[2 * PLACE + i % 2 + 8 * (i // 2), GROUP] for i in range(4)], 1).view(np.uint32)
    of_c = np.stack([c[GROUP + 8 * (i // 2), 2 * PLACE + i % 2] for i in range(4)], 1)
    return np.concatenate([of_a, of_b, words(32, 2), of_c.view(np.uint32)], 1)


def matrix_of(of_c: np.ndarray) -> np.ndarray:
    """[16, 8] of what the lanes hold."""
    matrix = np.zeros((16, 8), np.float32)
    for i in range(4):
        matrix[GROUP + 8 * (i // 2), 2 * PLACE + i % 2] = of_c[:, i]
    return matrix


SHAPES = {
    "bf16": "m16n8k16.row.col.f32.bf16.bf16.f32", "f16": "m16n8k16.row.col.f32.f16.f16.f32",
    "tf32": "m16n8k8.row.col.f32.tf32.tf32.f32",
}  # fmt: skip
PRODUCT = """
	ld.global.v4.u32 {{%r2, %r3, %r4, %r5}}, [%rd3];
	ld.global.v2.u32 {{%r6, %r7}}, [%rd3+16];
	ld.global.v4.f32 {{%f0, %f1, %f2, %f3}}, [%rd3+32];
	mma.sync.aligned.{shape} {{%f4, %f5, %f6, %f7}}, {{{a}}}, {{{b}}}, {{%f0, %f1, %f2, %f3}};
	st.global.v4.f32 [%rd5], {{%f4, %f5, %f6, %f7}};
"""


def multiplied(kind: str, a: str = "%r2, %r3, %r4, %r5", b: str = "%r6, %r7") -> tuple[np.ndarray, np.ndarray]:
    """d of the instruction, and a b + c of matrices of small whole numbers, which all types hold exactly."""
    random, depth = np.random.default_rng(0), 8 if kind == "tf32" else 16
    left, right = (random.integers(-8, 9, shape).astype(np.float32) for shape in ((16, depth), (depth, 8)))
    c = random.integers(-8, 9, (16, 8)).astype(np.float32)
    store = {"bf16": floats.to_bf16, "f16": floats.to_f16, "tf32": np.copy}[kind]
    held = fragments(kind, store(left), store(right), c)
    body = PRODUCT.format(shape=SHAPES[kind], a=a, b=b)
    return matrix_of(run(body, held, np.zeros((32, 4), np.float32))), left @ right + c


@pytest.mark.parametrize("kind", SHAPES)
def test_mma(kind):
    got, wanted = multiplied(kind)
    assert np.array_equal(got, wanted)


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize(
    "wrong", [{"a": "%r3, %r2, %r4, %r5"}, {"a": "%r2, %r4, %r3, %r5"}, {"b": "%r7, %r6"}], ids=str
)
def test_registers_of_mma_in_another_order(wrong, kind):
    got, wanted = multiplied(kind, **wrong)
    assert not np.array_equal(got, wanted)


def test_mma_of_tf32_reads_no_low_bits_and_cvt_rounds():
    a = np.full((16, 8), 1 + 2**-11, np.float32)  # half way between two numbers of TF32
    held = fragments("tf32", a, np.eye(8, dtype=np.float32), np.zeros((16, 8), np.float32))
    names = "%r2, %r3, %r4, %r5"
    cut = PRODUCT.format(shape=SHAPES["tf32"], a=names, b="%r6, %r7")
    rounding = "".join(f"cvt.rna.tf32.f32 %r{i}, %r{i};\n\t" for i in range(2, 6))
    rounded = cut.replace("mma.", rounding + "mma.")
    assert (run(cut, held, np.zeros((32, 4), np.float32)) == 1).all()
    assert (run(rounded, held, np.zeros((32, 4), np.float32)) == 1 + 2**-10).all()


def test_conversions_put_their_first_source_above():
    for name, store in (("bf16x2", floats.to_bf16), ("f16x2", floats.to_f16)):
        body = f"""ld.global.v2.f32 {{%f0, %f1}}, [%rd3];
	cvt.rn.{name}.f32 %r2, %f0, %f1;
	st.global.u32 [%rd5], %r2;"""
        source = np.random.default_rng(0).normal(size=(32, 2)).astype(np.float32)
        halves = store(source).astype(np.uint32)
        assert np.array_equal(run(body, source, words(32, 1))[:, 0], halves[:, 0] << 16 | halves[:, 1])


# ---- shared memory ---------------------------------------------------------------------------------------------------

COPY = """
	mul.wide.u32 %rd6, %r0, 16;
	add.s64 %rd7, %rd0, %rd6;
	shl.b32 %r2, %r0, 4;
	add.s32 %r3, %r1, %r2;
	cp.async.cg.shared.global [%r3], [%rd7], 16;
	cp.async.commit_group;
"""  # 16 bytes a thread, from the source as a whole


def matrices() -> np.ndarray:
    """Four matrices of 8x8 numbers of two bytes, one row after the other: 32 rows of 16 bytes."""
    return np.arange(256, dtype=np.uint16).reshape(32, 8)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("trans", ["", ".trans"])
def test_ldmatrix(count, trans):
    names = ", ".join(f"%r{4 + i}" for i in range(count))
    stores = "\n\t".join(f"st.global.u32 [%rd5+{4 * i}], %r{4 + i};" for i in range(count))
    loads = f"ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {{{names}}}, [%r3];"
    source = matrices()
    got = run(f"{COPY}\n\tcp.async.wait_group 0;\n\tbar.sync 0;\n\t{loads}\n\t{stores}", source, words(32, count))
    for i in range(count):
        matrix = source.reshape(4, 8, 8)[i].T if trans else source.reshape(4, 8, 8)[i]
        low, high = (matrix[GROUP, 2 * PLACE + half].astype(np.uint32) for half in (0, 1))
        assert np.array_equal(got[:, i], high << 16 | low)


READ = "xor.b32 %r4, %r3, 16;\n\tld.shared.u32 %r5, [%r4];\n\tst.global.u32 [%rd5], %r5;"  # of the neighbour


@pytest.mark.parametrize(
    "between, words_of_error",
    [
        ("cp.async.wait_group 0;\n\tbar.sync 0;", None),
        ("cp.async.wait_group 0;", "race"),
        ("cp.async.wait_group 1;\n\tbar.sync 0;", "not waited for|nobody has"),
        ("bar.sync 0;", "not waited for|nobody has"),
    ],
)
def test_an_asynchronous_copy_is_there_when_it_was_waited_for(between, words_of_error):
    source, body = matrices(), f"{COPY}\n\t{between}\n\t{READ}"
    if words_of_error is None:
        got = run(body, source, words(32, 1))
        assert np.array_equal(got[:, 0], source.view(np.uint32)[LANE ^ 1, 0])
    else:
        with pytest.raises(PtxError, match=words_of_error):
            run(body, source, words(32, 1))


def test_only_the_last_groups_may_still_be_under_way():
    """Two groups of copies; the first is there after wait_group 1, the second after wait_group 0."""
    second = re.sub(r"%r3\]", "%r3+512]", COPY.split("add.s32 %r3, %r1, %r2;")[1])
    body = f"{COPY}{second}\n\tcp.async.wait_group 1;\n\tbar.sync 0;\n\t{READ}\n\tcp.async.wait_group 0;"
    assert np.array_equal(run(body, matrices(), words(32, 1))[:, 0], matrices().view(np.uint32)[LANE ^ 1, 0])
    with pytest.raises(PtxError, match="not waited for|nobody has"):
        run(body.replace("[%r4]", "[%r4+512]"), matrices(), words(32, 1))


def test_shuffles_exchange_lanes():
    body = """ld.global.u32 %r2, [%rd3];
	shfl.sync.bfly.b32 %r3, %r2, 5, 31, -1;
	st.global.u32 [%rd5], %r3;"""
    source = np.random.default_rng(0).integers(0, 2**32, (32, 1), np.uint32)
    assert np.array_equal(run(body, source, words(32, 1)), source[LANE ^ 5])


# ---- atomics, and the way from one thread block to another -----------------------------------------------------------

ARRIVE = """
	setp.ne.u32 %p0, %r0, 0;
	mov.u32 %r2, %ctaid.x;
	mul.wide.u32 %rd6, %r2, 4;
	add.s64 %rd7, %rd1, %rd6;
	add.s32 %r3, %r2, 7;
	@%p0 bra $WRITTEN;
	st.global.u32 [%rd7+16], %r3;
$WRITTEN:
	bar.sync 0;
	@%p0 bra $END;
	atom.{order}.gpu.global.add.s32 %r4, [%rd1], 1;
	st.global.u32 [%rd7+4], %r4;
	setp.ne.s32 %p1, %r4, 1;
	@%p1 bra $END;
	ld.global.u32 %r5, [%rd1+16];
	st.global.u32 [%rd1+12], %r5;
$END:
"""  # target: the counter, what each block found there, what the last read of the first, what each wrote


def test_an_acquire_release_orders_thread_blocks():
    got = run(ARRIVE.format(order="acq_rel"), words(32, 1), words(32, 1), blocks=2)[:, 0]
    assert got[:6].tolist() == [2, 0, 1, 7, 7, 8]


def by_another_thread(text: str) -> str:
    """Thread 1 writes, and thread 0 arrives."""
    text = text.replace("%p0, %r0, 0;", "%p0, %r0, 0;\n\tsetp.ne.u32 %p2, %r0, 1;", 1)
    return text.replace("@%p0 bra $WRITTEN", "@%p2 bra $WRITTEN")


def test_a_barrier_hands_a_write_to_the_thread_that_releases():
    text = by_another_thread(ARRIVE.format(order="acq_rel"))
    assert run(text, words(32, 1), words(32, 1), blocks=2)[3, 0] == 7
    with pytest.raises(PtxError, match="race with .* of block"):
        run(text.replace("bar.sync 0;", ""), words(32, 1), words(32, 1), blocks=2)


def test_a_relaxed_counter_orders_nothing():
    with pytest.raises(PtxError, match="race with .* of block"):
        run(ARRIVE.format(order="relaxed"), words(32, 1), words(32, 1), blocks=2)


def test_a_trap_is_an_error_for_those_who_come_to_it():
    body = "setp.ne.u32 %p0, %r0, 40;\n\t@%p0 bra $END;\n\ttrap;\n$END:"
    run(body, words(32, 1), words(32, 1))
    with pytest.raises(PtxError, match="trap"):
        run(body.replace("40", "4"), words(32, 1), words(32, 1))


def test_an_unwritten_register_is_nan_and_an_unwritten_predicate_an_error():
    assert np.isnan(run("st.global.f32 [%rd5], %f9;", words(32, 1), words(32, 1)).view(np.float32)).all()
    with pytest.raises(PtxError, match="%p5.* is read before"):
        run("@%p5 bra $END;\n$END:", words(32, 1), words(32, 1))
