from __future__ import annotations

import numpy as np
import PIL
import pytest
from safetensors.numpy import save

from classifier.data.dataset import (
    SPLITS,
    DataFile,
    DatasetMeta,
    Sample,
    Split,
    check_decoder,
    read_meta,
    read_split,
    write_meta,
    write_split,
)
from classifier.project.files import sha256
from tests.forgery import edit_forged
from tests.samples import dataset_meta


def split(count: int = 5, channels: int = 3) -> Split:
    images = np.random.default_rng(0).integers(0, 256, (count, channels, 32, 32), np.uint8)
    return Split(images, np.arange(count) % 2)


def write(folder, test: Split) -> DatasetMeta:
    meta = dataset_meta(
        channels=3,
        class_names=["cat", "dog"],
        mean=[0.1, 0.2, 1 / 3],
        counts={name: np.bincount(test.labels, minlength=2).tolist() for name in SPLITS},
        files=dict.fromkeys(SPLITS, write_split(folder, "test", test)),
    )
    write_meta(folder, meta)
    return meta


@pytest.mark.parametrize("count", [5, 0])
def test_what_was_written_is_read(tmp_path, count):
    written = split(count)
    meta = write(tmp_path, written)
    assert {path.name for path in tmp_path.iterdir()} == {"test.safetensors", "meta.json"}
    assert read_meta(tmp_path) == meta
    found = read_split(tmp_path, "test", meta)
    assert len(found) == count
    assert found.images.shape == (count, 3, 32, 32)
    assert np.array_equal(found.images, written.images)
    assert np.array_equal(found.labels, written.labels)
    assert (found.images.dtype, found.labels.dtype) == (np.uint8, np.int64)


def test_arrays_that_are_views_are_written_in_their_own_order(tmp_path):
    turned = Split(split().images[::-1, ::-1], split().labels[::-1])
    found = read_split(tmp_path, "test", write(tmp_path, turned))
    assert np.array_equal(found.images, turned.images)
    assert np.array_equal(found.labels, turned.labels)


def test_a_sample_is_spread_over_the_whole_split():
    whole = split(10)
    sample = Sample(whole, 4)
    assert sample.numbers.tolist() == [0, 2, 5, 7]
    assert (len(sample), sample.shape) == (4, (3, 32, 32))
    assert np.array_equal(sample.images, whole.images[[0, 2, 5, 7]])
    assert np.array_equal(sample.take(np.array([3, 1])), whole.images[[7, 2]])
    assert np.array_equal(sample.labels, whole.labels[[0, 2, 5, 7]])
    assert Sample(whole, 20).numbers.tolist() == list(range(10))
    assert len(Sample(split(0), 4)) == 0


def test_another_decoder_than_the_installed_one_is_said(tmp_path, capsys):
    meta = write(tmp_path, split())
    for known in (None, f"Pillow {PIL.__version__}, libwebp 1"):
        check_decoder(meta.model_copy(update={"decoder": known}))
    assert not capsys.readouterr().err
    check_decoder(meta.model_copy(update={"decoder": f"Pillow {PIL.__version__}.1, libwebp 1"}))
    assert "is installed: dvc repro -f normalize lists the images whose pixels change" in capsys.readouterr().err


def test_missing_files_name_the_stage_to_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"meta\.json does not exist: run dvc repro normalize"):
        read_meta(tmp_path)
    meta = write(tmp_path, split())
    (tmp_path / "test.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"test\.safetensors does not exist: run dvc repro normalize"):
        read_split(tmp_path, "test", meta)


def test_a_changed_byte_is_noticed(tmp_path):
    meta = write(tmp_path, split())
    path = tmp_path / "test.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"test\.safetensors has SHA-256 .* run dvc repro -f normalize"):
        read_split(tmp_path, "test", meta)


def test_a_meta_that_no_version_wrote_is_named(tmp_path):
    write(tmp_path, split())
    edit_forged(tmp_path / "meta.json", '"channels": 3', '"channels": "x", "more": 1')
    with pytest.raises(ValueError, match=r"meta\.json is corrupt .* \(2 problems\), .*: run dvc repro -f normalize"):
        read_meta(tmp_path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"{}", "is not a split"),
        (save({"images": np.zeros((1, 3, 32, 32), np.uint8)}), "is not a split .*labels"),
        (save({"images": np.zeros((2, 3, 32, 32), np.uint8), "labels": np.zeros(1, np.int64)}), r"images \(2, 3"),
        (save({"images": np.zeros((1, 1, 32, 32), np.uint8), "labels": np.zeros(1, np.int64)}), r"images \(1, 1"),
        (save({"images": np.zeros((1, 3, 28, 28), np.uint8), "labels": np.zeros(1, np.int64)}), r"images \(1, 3, 28"),
        (save({"images": np.zeros((5, 3, 32, 32), np.uint8), "labels": np.arange(5) % 2 - 1}), "not match the counts"),
        (save({"images": np.zeros((5, 3, 32, 32), np.uint8), "labels": np.zeros(5, np.int64)}), "not match the counts"),
        (save({"images": np.zeros((5, 3, 32, 32), np.uint8), "labels": np.zeros(5)}), "float64: allowed is"),
        (
            save({"images": np.zeros((5, 3, 32, 32), np.uint8), "labels": np.zeros((5, 1), np.int64)}),
            r"holds labels \(5, 1\)",
        ),
        (save({"images": np.zeros((1, 3, 32, 32), np.int16), "labels": np.zeros(1, np.int64)}), "int16: allowed is"),
    ],
)
def test_another_content_is_refused_even_when_its_hash_is_the_recorded_one(tmp_path, content, problem):
    file = DataFile(name="test.safetensors", images=5, sha256=sha256(content))
    meta = write(tmp_path, split()).model_copy(update={"files": {split: [file] for split in SPLITS}})
    (tmp_path / "test.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=problem):
        read_split(tmp_path, "test", meta)
