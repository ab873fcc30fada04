from __future__ import annotations

import gzip
import tracemalloc

import numpy as np
import pytest

from classifier.data.formats import digits_csv, idx, parse
from tests import tiny_files

IMAGES = np.arange(3 * 28 * 28, dtype=np.uint8).reshape(3, 28, 28)
PLAIN = gzip.decompress(tiny_files.idx(IMAGES))
ROW = ",".join(["16"] * 64 + ["9"])


def test_idx_images_and_labels():
    assert np.array_equal(idx("images", tiny_files.idx(IMAGES), (28, 28)), IMAGES)
    labels = np.array([7, 0, 9], np.uint8)
    found = idx("labels", tiny_files.idx(labels), ())
    assert found.tolist() == [7, 0, 9]
    assert found.dtype == np.uint8


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "starts with : allowed is 00000803"),
        (b"<html>", "not a complete gzip file"),
        (tiny_files.idx(IMAGES)[:-20], "not a complete gzip file"),
        (tiny_files.idx(IMAGES)[:-1], "not a complete gzip file"),
        (tiny_files.idx(IMAGES) + b"junk", "not a complete gzip file"),
        (tiny_files.idx(IMAGES[0]), "starts with 00000802: allowed is 00000803"),
        (gzip.compress(b"\0\0\x0d" + PLAIN[3:], mtime=0), "starts with 00000d03"),
        (gzip.compress(PLAIN[:10], mtime=0), "the header is cut off after 10 bytes"),
        (tiny_files.idx(IMAGES[:, :27]), r"holds items of shape \(27, 28\): allowed is \(28, 28\)"),
        (tiny_files.idx(IMAGES[:0]), "announces 0 items: allowed are 1 to 1000000"),
        (gzip.compress(PLAIN[:4] + b"\xff" * 4 + PLAIN[8:], mtime=0), "announces 4294967295 items"),
        (gzip.compress(PLAIN[:-1], mtime=0), "announces 3 items, is cut off inside item 2"),
        (gzip.compress(PLAIN[:16], mtime=0), "announces 3 items, is cut off inside item 0"),
        (gzip.compress(PLAIN + b"\0", mtime=0), "has more than the 3 items that it announces"),
    ],
)
def test_a_bad_idx_file_is_named(content, problem):
    with pytest.raises(ValueError, match=f"train-images: {problem}"):
        idx("train-images", content, (28, 28))


def test_a_decompression_bomb_is_not_unpacked():
    bomb = gzip.compress(PLAIN + bytes(1 << 26), compresslevel=1, mtime=0)
    rows = gzip.compress(bytes(1 << 26), compresslevel=1, mtime=0)
    tracemalloc.start()
    with pytest.raises(ValueError, match="has more than"):
        idx("train-images", bomb, (28, 28))
    with pytest.raises(ValueError, match="more than 1048576 bytes"):
        digits_csv("digits.csv.gz", rows)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 23


def test_digits():
    images, labels = digits_csv("digits", tiny_files.digits([",".join(map(str, [*range(16)] * 4 + [3])), ROW]))
    assert images.shape == (2, 8, 8)
    assert images[0].ravel().tolist() == [*range(16)] * 4
    assert images[1].min() == 16
    assert labels.tolist() == [3, 9]
    assert images.dtype == labels.dtype == np.uint8


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (ROW[3:], "row 1 is not 65 integers"),
        (ROW + ",0", "row 1 is not 65 integers"),
        ("", "row 1 is not 65 integers"),
        (ROW.replace("9", "x"), "row 1 is not 65 integers"),
        (ROW.replace("9", "-1"), "row 1 is not 65 integers"),
        (ROW.replace("9", "1.0"), "row 1 is not 65 integers"),
        (ROW.replace("9", "265"), "row 1 is not 65 integers"),
        ("17" + ROW[2:], "row 1 has pixel 17: allowed are 0 to 16"),
        (ROW.replace("9", "10"), "item 1 has label 10: allowed are 0 to 9"),
    ],
)
def test_a_bad_row_of_digits_is_named(row, problem):
    with pytest.raises(ValueError, match=rf"digits\.csv: {problem}"):
        digits_csv("digits.csv", tiny_files.digits([ROW, row, ROW]))


def test_damaged_digits_are_named():
    with pytest.raises(ValueError, match=r"digits\.csv: not a complete gzip file"):
        digits_csv("digits.csv", tiny_files.digits([ROW])[:-3])
    with pytest.raises(ValueError, match=r"digits\.csv: empty"):
        digits_csv("digits.csv", tiny_files.digits([]))


@pytest.mark.parametrize("dataset", ["mnist", "fashion_mnist", "kmnist"])
def test_the_three_that_share_mnists_form(dataset):
    training, test = parse(dataset, tiny_files.mnist(40, 20))
    assert (training[0].shape, test[0].shape) == ((40, 28, 28), (20, 28, 28))
    assert training[1].tolist() == [*range(10)] * 4
    assert test[1].tolist() == [*range(10)] * 2
    assert not np.array_equal(training[0][:20], test[0])


def test_cifar10_joins_its_batches_in_order():
    arrays = tiny_files.cifar_arrays()
    training, test = parse("cifar10", tiny_files.cifar10())
    expected = np.concatenate([arrays[f"data_batch_{number}"][0] for number in range(1, 6)])
    assert np.array_equal(training[0], expected.reshape(-1, 3, 32, 32))
    assert training[1].tolist() == [*range(10)] * 10
    assert np.array_equal(test[0], arrays["test_batch"][0].reshape(-1, 3, 32, 32))


def test_labels_out_of_range_are_named():
    labels = np.arange(40, dtype=np.uint8) % 10
    labels[17] = 10
    files = tiny_files.mnist(40) | {"train-labels-idx1-ubyte.gz": tiny_files.idx(labels)}
    with pytest.raises(ValueError, match=r"train-labels-idx1-ubyte\.gz: item 17 has label 10: allowed are 0 to 9"):
        parse("mnist", files)
    batch = tiny_files.cifar_batch(np.zeros((2, 3072), np.uint8), [0, 11])
    members = {f"cifar-10-batches-bin/{name}.bin": batch for name in tiny_files.BATCHES}
    with pytest.raises(ValueError, match=r"tar\.gz: data_batch_1: item 1 has label 11"):
        parse("cifar10", {"cifar-10-binary.tar.gz": tiny_files.cifar_archive(members)})


def test_images_without_labels_are_named():
    files = tiny_files.mnist(40) | {"t10k-labels-idx1-ubyte.gz": tiny_files.idx(np.zeros(19, np.uint8))}
    with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte\.gz holds 20 images, t10k-labels.* 19 labels"):
        parse("mnist", files)
    del files["t10k-labels-idx1-ubyte.gz"]
    with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte\.gz is missing among .*: run dvc repro -f download"):
        parse("mnist", files)


@pytest.mark.mnist
def test_the_official_files(mnist_folder):
    files = {path.name: path.read_bytes() for path in mnist_folder.iterdir()}
    training, test = parse("mnist", files)
    assert (training[0].shape, test[0].shape) == ((60000, 28, 28), (10000, 28, 28))
    assert training[1][:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert np.bincount(test[1]).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
