"""Gates that differ from image to image, on the compiled CPU kernels: images that pass a block cost it nothing."""

from __future__ import annotations

import pytest
import torch
from cases import Recorder, make_stage, specs
from training_cases import TRAINED_FORMS, C, blocks_of, check, images, route_of, stage_of, train

from pathnet import Gate, extension, use_backend
from pathnet.blocks import BLOCKS

pytestmark = pytest.mark.skipif(not extension.available(), reason="the extension is not compiled")
OFF, FULL, FORWARD, FROZEN, RESIDUAL = Gate
SHAPE = 5, C, 8, 8
ROWS = torch.tensor([[1, 0, 1], [0, 1, 1], [1, 0, 0], [0, 1, 1], [1, 1, 1]])  # 3, 3 and 4 images run
FWD, BWD = torch.ops.pathnet.stage_train_fwd.default, torch.ops.pathnet.stage_train_bwd.default


@pytest.mark.parametrize("training, memory_format", [(False, torch.contiguous_format), (True, torch.channels_last)])
@pytest.mark.parametrize("gate", [FULL, FORWARD, FROZEN, RESIDUAL])
@pytest.mark.parametrize("form", TRAINED_FORMS)
def test_some_images_pass(form, gate, training, memory_format, poisoned):
    stage, route = stage_of(form, blocks=3).train(training), route_of(ROWS * gate, [1.0, 0.5, -1.5])
    x = images(stage, SHAPE, route).to(memory_format=memory_format)
    with Recorder() as recorder:
        check("cpu", stage, x, route)
    assert [args[2].tolist() for func, args in recorder.calls if func is FWD] == [[0, 2, 4], [1, 3, 4], [0, 1, 3, 4]]


@pytest.mark.parametrize("form", TRAINED_FORMS)
def test_what_the_kernel_leaves_runs_block_by_block(form, poisoned):
    """Several gates in a block, few values, a shortcut with weights, blocks of one gate."""
    stage = make_stage(form, "conv", blocks=5).train()
    gates = [[1, 1, 2, 1, 0], [0, 2, 2, 0, 1], [1, 3, 2, 0, 1], [1, 4, 2, 0, 1]]
    route = route_of(gates, [1.0, 1.0, 0.5, 1.0, 2.0])
    x = images(stage, (4, C, 8, 8), route)
    with Recorder() as recorder:
        check("cpu", stage, x, route)
    assert [args[2] for func, args in recorder.calls if func is FWD] == [None], "the third block alone"


@pytest.mark.parametrize("form", TRAINED_FORMS)
def test_some_images_pass_and_each_has_its_multiplier(form, poisoned):
    stage = stage_of(form, blocks=3).train()
    route = route_of(ROWS, torch.linspace(-2, 2, 15).view(5, 3))
    with Recorder() as recorder:
        check("cpu", stage, images(stage, SHAPE, route), route)
    assert [args[7] for func, args in recorder.calls if func is FWD][0] == route.multiplier[[0, 2, 4], 0].tolist()


@pytest.mark.parametrize("training, memory_format", [(False, torch.contiguous_format), (True, torch.channels_last)])
@pytest.mark.parametrize("form", TRAINED_FORMS)
def test_masked_rows_are_one_run(form, training, memory_format, poisoned):
    """bn="all": blocks of masked images, of a multiplier an image and of one for all, FORWARD ones among them."""
    stage = stage_of(form, blocks=4).train(training)
    gates = torch.cat([ROWS[:, :2], torch.full((5, 1), FORWARD), ROWS[:, 2:]], 1)
    factors = [[1.25, 0.5, -1.5 + 0.25 * n, 2.0 * n] for n in range(5)]
    route = route_of(gates, factors)._replace(mask_rows=True)
    x = images(stage, SHAPE, route).to(memory_format=memory_format)
    with Recorder() as recorder:
        check("cpu", stage, x, route)
    assert [len(args[6]) // 3 for func, args in recorder.calls if func is FWD] == [4]


@pytest.mark.parametrize("gate, runs", [(FULL, 1), (FORWARD, 1), (FROZEN, 0), (RESIDUAL, 0)])
@pytest.mark.parametrize("shortcut", ["pad", "conv"])
@pytest.mark.parametrize("form", TRAINED_FORMS)
def test_some_images_pass_a_strided_block(form, shortcut, gate, runs, poisoned):
    """The shortcut sees all images; where the gate cuts its gradient in some of them, the reference runs."""
    stage = make_stage(form, shortcut, C, 2 * C // BLOCKS[form].expansion, 2, 1).train()
    route = route_of(ROWS[:, :1] * gate, [1.25])
    sides = (15, 17) if form == "basic" else (16, 16)
    with Recorder() as recorder:
        check("cpu", stage, images(stage, (5, C, *sides), route), route)
    assert [len(args[0]) for func, args in recorder.calls if func is FWD] == [3] * runs


@pytest.mark.parametrize("shortcut", ["pad", "conv"])
@pytest.mark.parametrize("form", TRAINED_FORMS)
def test_masked_rows_of_a_strided_block(form, shortcut, poisoned):
    stage = make_stage(form, shortcut, C, 2 * C // BLOCKS[form].expansion, 2, 2).train()
    route = route_of(ROWS[:, :2], [1.25, 1.25])._replace(mask_rows=True)
    with Recorder() as recorder:
        check("cpu", stage, images(stage, (5, C, 16, 16), route), route)
    assert [blocks_of(args) for func, args in recorder.calls if func is FWD] == [2]


def test_masked_rows_beside_another_gate_are_the_reference_s(poisoned):
    """A masked row is FULL times zero, and one call takes one gate a block: here another one stands in each block."""
    gates = [[FORWARD, FROZEN, RESIDUAL], *[[OFF] * 3] * 2, *[[FORWARD, FROZEN, RESIDUAL]] * 2]
    stage, route = stage_of(blocks=3).train(), route_of(gates)._replace(mask_rows=True)
    with Recorder() as recorder:
        check("cpu", stage, images(stage, SHAPE, route), route)
    assert not recorder.calls


def test_a_block_that_is_off_for_the_batch_does_not_run_under_bn_all():
    stage, x = stage_of(blocks=2).train(), torch.randn(SHAPE)
    route = route_of([OFF, FULL])._replace(mask_rows=True)
    check("cpu", stage, x, route)


def test_an_offset_view(poisoned):
    stage, route = stage_of(blocks=3).train(), route_of(ROWS)
    view = torch.full((7, C + 3, 12, 12), torch.nan)[1:6, 2 : C + 2, 1:9, 3:11]
    check("cpu", stage, view.copy_(images(stage, SHAPE, route)), route)


def test_images_that_pass_cost_no_memory():
    stage, x = stage_of(blocks=1).train(), torch.randn(8, C, 16, 16, requires_grad=True)

    def kept(gates) -> int:
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.nbytes) or t, lambda t: t):
            train(stage, x, gates)
        return sum(saved)

    weights = sum(p.nbytes for p in stage.parameters() if p.dim() == 4)
    few, all_images = kept([[1], [0], [0], [0], [1], [0], [0], [0]]) - weights, kept([[1]] * 8) - weights
    assert few < 0.27 * all_images


def test_the_ops_with_rows_pass_opcheck():
    stage, x = stage_of(blocks=2).train(), torch.randn(5, C, 8, 8, requires_grad=True)
    with Recorder() as recorder:
        gates, factors = [[1, 2], [0, 2], [1, 0], [0, 2], [1, 0]], [[0.5, n] for n in range(5)]
        train(stage, x, gates, multiplier=factors).square().sum().backward()
    assert [func for func, _ in recorder.calls] == [FWD, FWD, BWD, BWD]
    for func, args in recorder.calls:
        detached = torch.utils._pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, args)
        torch.library.opcheck(func, detached, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("rows, words", [([0, 0], "ascend"), ([2, 1], "ascend"), ([5], "within"), ([-1], "within"),
                                         ([], "at least one"), ([[0]], "list")])  # fmt: skip
def test_wrong_rows_are_refused(rows, words):
    stage, x = stage_of(blocks=1).train(), torch.randn(SHAPE)
    with Recorder() as recorder:
        train(stage, x, ROWS[:, :1])
    func, args = recorder.calls[0]
    with pytest.raises((ValueError, RuntimeError), match=words):
        func(*args[:2], torch.tensor(rows, dtype=torch.int64), *args[3:])


def test_a_wrong_number_of_multipliers_is_refused():
    stage, x = stage_of(blocks=2).train(), torch.randn(SHAPE)
    with Recorder() as recorder:
        train(stage, x, [1, 1])
    func, args = recorder.calls[0]
    for wrong in ([1.0], [1.0] * 5, [1.0] * 11):
        with pytest.raises((ValueError, RuntimeError), match="2 blocks, or for each of 5 images of each block, got"):
            func(*args[:7], wrong, *args[8:])


def test_no_image_runs_and_every_image_runs():
    stage, x = stage_of(blocks=2).train(), torch.randn(SHAPE)
    with use_backend("cpu"), Recorder() as recorder:
        y = train(stage, x, [[0, 1]] * 5)
        same = train(stage[1:], x, [1])
    assert torch.equal(y, same) and all(args[2] is None for _, args in recorder.calls)
    assert specs(stage)[0].residual[1].num_batches_tracked == 0
