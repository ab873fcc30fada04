from __future__ import annotations

import io
import struct
import tarfile

import numpy as np
import pytest

from classifier import cifar
from classifier.cifar import BATCHES, read_archive
from tests.tiny_files import cifar10, cifar_archive, cifar_arrays, cifar_batch, short

NAME = "cifar-10-python.tar.gz"
IMAGES, LABELS = np.arange(2 * 3072, dtype=np.uint8).reshape(2, 3072), [3, 9]


def archive_with(batch: bytes, **others: bytes) -> bytes:
    """An archive whose data_batch_2 is `batch`."""
    good = cifar_batch(IMAGES, LABELS)
    members = {f"cifar-10-batches-py/{name}": batch if name == "data_batch_2" else good for name in BATCHES}
    return cifar_archive({**members, **others})


def test_every_batch_is_read_in_the_order_of_the_source():
    batches = read_archive(NAME, cifar10()[NAME])
    assert list(batches) == list(BATCHES)
    for batch, (images, labels) in cifar_arrays().items():
        assert np.array_equal(batches[batch][0], images.reshape(-1, 3, 32, 32))
        assert batches[batch][0].dtype == batches[batch][1].dtype == np.uint8
        assert batches[batch][1].tolist() == labels


def test_arrays_in_fortrans_order_are_read_too():
    batch = cifar_batch(IMAGES, LABELS)
    content = IMAGES.tobytes()
    swapped = batch.replace(
        b"\x89T" + struct.pack("<i", len(content)) + content,
        b"\x88T" + struct.pack("<i", len(content)) + IMAGES.tobytes(order="F"),
    )
    assert swapped != batch
    images, _ = read_archive(NAME, archive_with(swapped))["data_batch_2"]
    assert np.array_equal(images.reshape(-1, 3072), IMAGES)


COMMAND = b"cos\nsystem\n" + short(b"touch it-ran") + b"\x85R"
CALL_OF_A_KNOWN_NAME = b"cnumpy\ndtype\n" + short(b"O8") + b"K\x00K\x01\x87R"


@pytest.mark.parametrize(
    ("batch", "problem"),
    [
        (cifar_batch(IMAGES, LABELS, data=COMMAND), "it names 'os system'"),
        (cifar_batch(IMAGES, LABELS, data=CALL_OF_A_KNOWN_NAME), "it calls b'numpy dtype'"),
        (cifar_batch(IMAGES, LABELS, data=short(b"os") + b"(i"), "it uses the word b'i'"),
        (cifar_batch(IMAGES, LABELS, data=b"h\x63"), "it recalls 99"),
        (cifar_batch(IMAGES, LABELS, data=b"e"), "it fills something that is not a list"),
        (cifar_batch(IMAGES, LABELS)[:-1], "it ends at byte"),
        (cifar_batch(IMAGES, LABELS)[:5000], "it ends at byte"),
        (b"", "it ends at byte 0"),
        (b"\x85.", "empty stack"),
        (b"t.", "it closes what it did not open"),
        (b"K\x00K\x01.", "not a batch"),
        (b"]]s.", "not a batch"),
        (b"}](K\x00K\x01es.", "not a batch"),
        (b"N.", "holds no array named data"),
        (b"}.", "holds no array named data"),
        (cifar_batch(IMAGES, LABELS, data=b"N"), "holds no array named data"),
        (cifar_batch(IMAGES, LABELS).replace(b"M\x02\x00M", b"M\x03\x00M"), "cannot reshape"),
        (cifar_batch(IMAGES.reshape(4, 1536), LABELS).replace(b"M\x00\x0c", b"M\x00\x06"), r"shape \(4, 1536\)"),
        (cifar_batch(IMAGES[:0], []), r"shape \(0, 3072\)"),
        (cifar_batch(IMAGES, [1, 2, 3]), "labels are not a list of 2 numbers"),
        (cifar_batch(IMAGES, LABELS).replace(b"K\x03K\x09e", b"K\x03Ne"), "item 1 has label None"),
        (cifar_batch(IMAGES, LABELS).replace(b"K\x03K\x09e", b"K\x03J\xff\xff\xff\xffe"), "item 1 has label -1"),
    ],
)
def test_anything_else_in_a_batch_is_refused_by_name_and_nothing_runs(batch, problem, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"{NAME}: data_batch_2: .*{problem}"):
        read_archive(NAME, archive_with(batch))
    assert list(tmp_path.iterdir()) == []


def test_members_go_by_their_exact_names_and_none_reaches_the_disk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    members = {
        "../cifar-10-batches-py/data_batch_1": b"",
        "cifar-10-batches-py/../data_batch_1": b"",
        "data_batch_1": b"",
        "/tmp/data_batch_1": b"",
    }
    with pytest.raises(ValueError, match="cifar-10-batches-py/data_batch_1 is missing"):
        read_archive(NAME, cifar_archive(members))
    good = cifar_batch(IMAGES, LABELS)
    assert len(read_archive(NAME, archive_with(good, **members))) == 6
    assert list(tmp_path.iterdir()) == []


def test_a_link_or_a_second_batch_of_the_same_name_is_refused():
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        link = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(ValueError, match="data_batch_1 is there twice, or not a file"):
        read_archive(NAME, stream.getvalue())

    stream = io.BytesIO()
    batch = cifar_batch(IMAGES, LABELS)
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for _ in range(2):
            member = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
            member.size = len(batch)
            archive.addfile(member, io.BytesIO(batch))
    with pytest.raises(ValueError, match="data_batch_1 is there twice"):
        read_archive(NAME, stream.getvalue())


def test_members_too_many_or_too_large_are_refused(monkeypatch):
    many = {f"other{number}": b"" for number in range(20)}
    with pytest.raises(ValueError, match="other16: more than 16 members"):
        read_archive(NAME, cifar_archive(many))
    monkeypatch.setattr(cifar, "LARGEST_MEMBER", 1000)
    with pytest.raises(ValueError, match="big: more than 16 members or 1,000 bytes in one"):
        read_archive(NAME, cifar_archive({"big": bytes(1001)}))


@pytest.mark.parametrize("size", [0, 10, 1000, -50_000])
def test_a_damaged_archive_is_named(size):
    content = cifar10()[NAME]
    with pytest.raises(ValueError, match=f"{NAME}: (not a whole gzipped tar archive|.* is missing)"):
        read_archive(NAME, content[:size])
