from __future__ import annotations

import gzip
import io
import tarfile

import numpy as np
import pytest

from classifier.data.cifar import BATCHES, read_archive
from tests.tiny_files import cifar10, cifar_archive, cifar_arrays, cifar_batch

NAME = "cifar-10-binary.tar.gz"
FIRST = "cifar-10-batches-bin/data_batch_1.bin"
IMAGES, LABELS = np.arange(2 * 3072, dtype=np.uint8).reshape(2, 3072), [3, 9]
BATCH = cifar_batch(IMAGES, LABELS)


def archive_with(batch: bytes, **others: bytes) -> bytes:
    """An archive whose data_batch_2 is `batch`."""
    members = {f"cifar-10-batches-bin/{name}.bin": batch if name == "data_batch_2" else BATCH for name in BATCHES}
    return cifar_archive({**members, **others})


def test_every_batch_is_read_in_the_order_of_the_source():
    batches = read_archive(NAME, cifar10()[NAME])
    assert list(batches) == list(BATCHES)
    for batch, (images, labels) in cifar_arrays().items():
        assert np.array_equal(batches[batch][0], images.reshape(-1, 3, 32, 32))
        assert batches[batch][0].dtype == batches[batch][1].dtype == np.uint8
        assert batches[batch][1].tolist() == labels


def test_a_row_is_the_label_then_the_red_green_and_blue_planes_row_by_row():
    """Written by hand from the format's description on the home page, not by the helper of the other tests."""
    red, green, blue = bytearray(1024), bytearray(1024), bytearray(1024)
    red[0], green[31], blue[32 * 31] = 255, 128, 64  # top left, top right, bottom left
    images, labels = read_archive(NAME, archive_with(bytes([7]) + red + green + blue))["data_batch_2"]
    assert labels.tolist() == [7]
    assert images.shape == (1, 3, 32, 32)
    assert np.argwhere(images).tolist() == [[0, 0, 0, 0], [0, 1, 0, 31], [0, 2, 31, 0]]
    assert images[images > 0].tolist() == [255, 128, 64]


@pytest.mark.parametrize("batch", [b"", BATCH[:-1], BATCH + b"x", BATCH[:1], BATCH[:3072]])
def test_a_batch_that_is_not_whole_rows_is_refused_by_name(batch):
    with pytest.raises(ValueError, match=f"{NAME}: data_batch_2: {len(batch):,} bytes: allowed is a multiple of 3,073"):
        read_archive(NAME, archive_with(batch))


def test_members_go_by_their_exact_names_and_none_reaches_the_disk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    others = (f"../{FIRST}", "cifar-10-batches-bin/../data_batch_1.bin", "data_batch_1.bin", f"/{FIRST}", FIRST[:-4])
    members = dict.fromkeys(others, b"")
    with pytest.raises(ValueError, match=f"{FIRST} is missing"):
        read_archive(NAME, cifar_archive(members))
    assert len(read_archive(NAME, archive_with(BATCH, **members))) == 6
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_a_batch_that_is_a_link_or_a_device_is_refused(kind):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        link = tarfile.TarInfo(FIRST)
        link.type, link.linkname = kind, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(ValueError, match=f"{FIRST} is a duplicate or not a regular file"):
        read_archive(NAME, stream.getvalue())


def test_a_second_batch_of_the_same_name_is_refused():
    plain = gzip.decompress(cifar_archive({FIRST: BATCH}))
    member = plain[: 512 + -(-len(BATCH) // 512) * 512]
    with pytest.raises(ValueError, match=f"{FIRST} is a duplicate"):
        read_archive(NAME, gzip.compress(member + plain))


def test_a_batch_of_10_000_images_is_read_and_one_of_more_refused():
    whole = bytes(10_000 * 3073)
    assert read_archive(NAME, archive_with(whole))["data_batch_2"][0].shape == (10_000, 3, 32, 32)
    with pytest.raises(ValueError, match=r"data_batch_2\.bin: more than 16 members, or more than 30,730,000 bytes"):
        read_archive(NAME, archive_with(whole + BATCH))


def test_too_many_members_are_refused():
    with pytest.raises(ValueError, match="other16: more than 16 members"):
        read_archive(NAME, cifar_archive({f"other{number}": b"" for number in range(20)}))


@pytest.mark.parametrize("size", [0, 10, 1000, -50_000])
def test_a_damaged_archive_is_named(size):
    content = cifar10()[NAME]
    with pytest.raises(ValueError, match=f"{NAME}: (not a complete gzipped tar archive|.* is missing)"):
        read_archive(NAME, content[:size])
