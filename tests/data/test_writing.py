from __future__ import annotations

import hashlib

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save

from classifier.data import writing
from classifier.data.dataset import Split, read_meta, read_split, write_meta
from classifier.data.writing import SplitWriter
from classifier.runs.comparison import find_test_images
from tests.samples import dataset_meta

IMAGES = np.random.default_rng(0).integers(0, 256, (50, 3, 32, 32), np.uint8)
LABELS = np.arange(50) % 2
DIGESTS = np.stack([np.frombuffer(hashlib.sha256(image).digest(), np.uint8) for image in IMAGES])


def write(folder, count=50, pieces=7):
    """A data set whose splits all have the first `count` images, appended in pieces."""
    folder.mkdir(parents=True, exist_ok=True)
    files, labels = {}, {}
    for split in ("train", "validation", "test"):
        writer = SplitWriter(folder, split, LABELS[:count], DIGESTS[:count], IMAGES.shape[1:])
        for start in range(0, count, pieces):
            writer.append(IMAGES[start : min(start + pieces, count)])
        files[split], of_labels = writer.close()
        labels |= {split: of_labels} if of_labels else {}
    meta = dataset_meta(
        channels=3,
        class_names=["cat", "dog"],
        counts=dict.fromkeys(files, np.bincount(LABELS[:count], minlength=2).tolist()),
        files=files,
        labels=labels,
    )
    write_meta(folder, meta)
    return meta


@pytest.fixture
def several(monkeypatch):
    """Files of 20 images at most."""
    monkeypatch.setattr(writing, "LARGEST_FILE", 20 * (3 * 32 * 32 + 8) + writing.HEADER_BYTES)


@pytest.mark.parametrize("count", [50, 1, 0])
def test_one_file_has_the_bytes_that_safetensors_writes(tmp_path, count):
    meta = write(tmp_path, count)
    content = save({"images": IMAGES[:count], "labels": LABELS[:count]})
    assert (tmp_path / "train.safetensors").read_bytes() == content
    assert meta.sha256["train"] == hashlib.sha256(content).hexdigest()
    assert meta.labels == {}
    assert np.array_equal(read_split(tmp_path, "train", meta).images, IMAGES[:count])


def test_a_large_split_lies_in_files_of_bounded_size(tmp_path, several):
    write(tmp_path)
    meta = read_meta(tmp_path)
    names = [f"test-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    assert [(file.name, file.images) for file in meta.files["test"]] == list(zip(names, (20, 20, 10), strict=True))
    assert {path.name for path in tmp_path.glob("test*")} == {*names, "test-labels.safetensors"}
    for file in meta.files["test"]:
        content = (tmp_path / file.name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == file.sha256
        assert len(content) <= writing.LARGEST_FILE
    assert (tmp_path / names[0]).read_bytes() == save({"images": IMAGES[:20]})
    split = read_split(tmp_path, "test", meta)
    assert isinstance(split, Split)
    assert len(split) == 50
    assert split.labels.tolist() == LABELS.tolist()
    picked = np.array([49, 0, 20, 19, 20, 3])
    assert np.array_equal(split.take(picked), IMAGES[picked])
    assert np.array_equal(split.images, IMAGES)
    assert split.take(np.empty(0, np.int64)).shape == (0, 3, 32, 32)


def test_a_changed_image_is_named_when_it_is_first_read_and_not_before(tmp_path, several):
    meta = write(tmp_path)
    path = tmp_path / "test-00002-of-00003.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # of image 39
    path.write_bytes(content)
    split = read_split(tmp_path, "test", meta)
    assert np.array_equal(split.take(np.arange(39)), IMAGES[:39])
    with pytest.raises(ValueError, match=r"test-00002-of-00003\.safetensors: image 19 was changed: run dvc repro -f"):
        split.take(np.array([3, 39]))


def test_other_labels_and_missing_parts_are_named_at_once(tmp_path, several):
    meta = write(tmp_path)
    labels = tmp_path / "test-labels.safetensors"
    content = bytearray(labels.read_bytes())
    content[-1] ^= 1
    labels.write_bytes(content)
    with pytest.raises(ValueError, match=r"test-labels\.safetensors has SHA-256 .*: run dvc repro -f normalize"):
        read_split(tmp_path, "test", meta)
    (tmp_path / "train-00003-of-00003.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"train-00003-of-00003\.safetensors does not exist: run dvc repro"):
        read_split(tmp_path, "train", meta)


def test_an_image_larger_than_a_file_gets_one_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "LARGEST_FILE", 100)
    meta = write(tmp_path, 3)
    assert [file.images for file in meta.files["train"]] == [1, 1, 1]
    assert np.array_equal(read_split(tmp_path, "train", meta).images, IMAGES[:3])


def test_the_test_images_of_a_run_are_found_in_several_files(workspace, several):
    meta = write(workspace / "data/normalized")
    rows = pd.DataFrame({"test_data": [meta.sha256["test"]], "data": ["unknown"]})
    assert np.array_equal(find_test_images(rows), IMAGES)
    rows["test_data"] = "0" * 64
    with pytest.raises(FileNotFoundError, match="the test images of data unknown are neither in"):
        find_test_images(rows)
