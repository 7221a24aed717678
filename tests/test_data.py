"""Images: digits, CIFAR-10 in both layouts, folders, and a sentence for everything that cannot be read."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from pathnet import data
from pathnet.data.augment import shift_and_mirror


def test_digits_are_split_normalised_and_repeatable():
    digits = data.load("digits")
    assert [len(part[1]) for part in (digits.train, digits.test)] == [1437, 360]
    assert digits.train[0].shape[1:] == (1, 16, 16)
    assert digits.train[0].is_contiguous(memory_format=torch.channels_last)
    assert digits.train[0].mean().abs() < 1e-5 and (digits.train[0].std() - 1).abs() < 1e-3
    counts = torch.bincount(digits.test[1])
    assert counts.min() >= 34 and counts.max() <= 38
    assert digits.fingerprint == data.load("digits").fingerprint


def make_cifar_folder(root, images=6, extra=None):
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        pixels = np.arange(images * 3072, dtype=np.uint32).astype(np.uint8).reshape(images, 3072)
        batch = {b"data": pixels, b"labels": [i % 10 for i in range(images)], b"extra": extra}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    return folder


def test_cifar_folder_is_read_in_channel_order(tmp_path):
    make_cifar_folder(tmp_path)
    cifar = data.load("cifar10", tmp_path)
    assert cifar.train[0].shape == (30, 3, 32, 32) and cifar.test[0].shape == (6, 3, 32, 32)
    first = np.arange(3072, dtype=np.uint32).astype(np.uint8).reshape(3, 32, 32)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (torch.from_numpy(first) / 255 - mean[:, None, None]) / std[:, None, None]
    assert torch.allclose(cifar.train[0][0], expected, atol=1e-6)


def test_cifar_pickle_that_names_code_is_refused_and_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",)

    make_cifar_folder(tmp_path, extra=Evil())
    with pytest.raises(ValueError, match="not allowed"):
        data.load("cifar10", tmp_path)
    assert not (tmp_path / "ran").exists()


def test_cifar_truncated_batch_is_named(tmp_path):
    batch = make_cifar_folder(tmp_path) / "data_batch_3"
    batch.write_bytes(batch.read_bytes()[:200])
    with pytest.raises(ValueError, match="data_batch_3"):
        data.load("cifar10", tmp_path)


def test_cifar_without_root_or_folder(tmp_path):
    with pytest.raises(ValueError, match="needs root"):
        data.load("cifar10")
    with pytest.raises(ValueError, match="cifar-10-batches-py"):
        data.load("cifar10", tmp_path)


def test_npz_with_and_without_test_part(tmp_path):
    x = np.random.default_rng(0).integers(0, 255, (20, 16, 16, 3), dtype=np.uint8)
    y = np.arange(20) % 2
    np.savez(tmp_path / "one.npz", x=x, y=y)
    np.savez(tmp_path / "two.npz", x=x, y=y, x_test=x[:3], y_test=y[:3])
    split = data.load("cifar10", tmp_path / "one.npz")
    assert (len(split.train[1]), len(split.test[1])) == (16, 4)
    assert sorted(split.test[1].tolist()) == [0, 0, 1, 1]
    assert len(data.load("cifar10", tmp_path / "two.npz").test[1]) == 3


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"x": np.zeros((4, 16, 16, 3), np.uint8)}, "lacks y"),
        ({"x": np.zeros((0, 16, 16, 3), np.uint8), "y": np.zeros(0, int)}, "N > 0"),
        ({"x": np.zeros((4, 16, 16, 3), np.uint8), "y": np.array([0, 1, 2, 10])}, r"0\.\.9.*0\.\.10"),
        ({"x": np.zeros((4, 16, 16, 3), np.uint8), "y": np.zeros(3, int)}, "each of the 4 images"),
        ({"x": np.zeros((20, 4, 4, 3), np.uint8), "y": np.arange(20) % 2}, "at least 8 x 8 pixels.*4 x 4"),
        ({"x": np.zeros((20, 16, 16, 3), float), "y": np.arange(20) % 2}, "uint8"),
        ({"x": np.zeros((3, 16, 16, 3), np.uint8), "y": np.arange(3)}, "several images of each class"),
    ],
)
def test_npz_that_does_not_serve(tmp_path, arrays, sentence):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ValueError, match=sentence):
        data.load("cifar10", tmp_path / "bad.npz")


def test_npz_that_is_no_npz(tmp_path):
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 not an archive")
    with pytest.raises(ValueError, match="readable .npz"):
        data.load("cifar10", tmp_path / "bad.npz")
    with pytest.raises(ValueError, match="readable .npz"):
        data.load("cifar10", tmp_path / "absent.npz")


def make_folder(root, images=5):
    for shade, name in ((40, "dark"), (220, "light")):
        (root / name).mkdir(parents=True)
        for i in range(images):
            Image.new("RGB", (20 + i, 12), (shade, shade, shade)).save(root / name / f"{i}.png")


def test_folder_of_images(tmp_path):
    make_folder(tmp_path)
    folder = data.load(f"folder:{tmp_path}", image_size=16)
    assert folder.train[0].shape == (8, 3, 16, 16) and len(folder.test[1]) == 2
    assert folder.classes == 2
    dark, light = (folder.train[0][folder.train[1] == c].mean() for c in (0, 1))
    assert dark < light


def test_folder_with_its_own_parts(tmp_path):
    make_folder(tmp_path / "train")
    make_folder(tmp_path / "test", images=1)
    folder = data.load(f"folder:{tmp_path}", image_size=16)
    assert (len(folder.train[1]), len(folder.test[1])) == (10, 2)


def test_folder_that_does_not_serve(tmp_path):
    with pytest.raises(ValueError, match="needs a folder"):
        data.load(f"folder:{tmp_path / 'absent'}")
    with pytest.raises(ValueError, match="at least 2 classes"):
        data.load(f"folder:{tmp_path}")
    with pytest.raises(ValueError, match="image_size must be at least 8 pixels, not 4"):
        data.load(f"folder:{tmp_path}", image_size=4)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with pytest.raises(ValueError, match="needs images"):
        data.load(f"folder:{tmp_path}")
    (tmp_path / "a" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(ValueError, match="broken.png"):
        data.load(f"folder:{tmp_path}")


def test_unknown_data():
    with pytest.raises(ValueError, match="digits, cifar10, an .npz file or folder:PATH, not 'mnist'"):
        data.load("mnist")


def test_augmentation_moves_pixels_without_making_any():
    x = torch.zeros(64, 1, 16, 16)
    x[:, :, 8, 6] = 1.0
    moved = shift_and_mirror(x, torch.Generator().manual_seed(0))
    assert torch.equal(moved.sum((1, 2, 3)), torch.ones(64))  # a pixel 4 or more from the border is never lost
    rows, columns = moved.nonzero()[:, 2], moved.nonzero()[:, 3]
    assert set(rows.tolist()) == set(range(4, 13))
    assert set(columns.tolist()) <= set(range(2, 14)) and len(set(columns.tolist())) > 9
    assert torch.equal(moved, shift_and_mirror(x, torch.Generator().manual_seed(0)))
