"""Images in memory or in their files: the same bits, read ahead by a thread, chosen by size."""

import hashlib
import threading

import numpy as np
import pytest
import torch

from classifier.data import writing
from classifier.data.dataset import Split, StoredSplit, read_split, write_meta
from classifier.errors import UserError
from classifier.networks.model import Classifier, LeNet5
from classifier.training import engine, loop, sources
from classifier.training.checkpoint import Checkpoints
from classifier.training.engine import Engine
from classifier.training.loop import fit
from classifier.training.sources import OnDisk, ReadAhead, are_resident
from classifier.training.steps import Steps, StreamedSteps
from tests.samples import StoppedError, digits_split, stop_after, train_params, write_digits

CPU = torch.device("cpu")
VALIDATION = digits_split(30, start=300)


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """The first 100 digits in four files."""
    folder, digits = tmp_path / "normalized", digits_split(100)
    folder.mkdir()
    meta = write_digits(folder)
    (folder / "train.safetensors").unlink()
    monkeypatch.setattr(writing, "LARGEST_FILE", writing.HEADER_BYTES + 30 * (32 * 32 + 8))
    digests = np.stack([np.frombuffer(hashlib.sha256(image).digest(), np.uint8) for image in digits.images])
    writer = writing.SplitWriter(folder, "train", digits.labels, digests, (1, 32, 32))
    writer.append(digits.images)
    files, labels = writer.close()
    assert len(files) == 4
    meta = meta.model_copy(update={"files": meta.files | {"train": files}, "labels": {"train": labels}})
    write_meta(folder, meta)
    split = read_split(folder, "train", meta)
    assert isinstance(split, StoredSplit)
    return folder, split


def trained(split, checkpoints=None, report=None, **values):
    params = train_params(**({"epochs": 2, "batch_size": 16, "log_every": 2, "parts": 3, "mixup": 0.2} | values))
    torch.manual_seed(0)
    classifier, rows = Classifier(LeNet5(1, 10), [0.24], [0.33]), []
    fit(classifier, split, VALIDATION, params, CPU, report or (lambda seed, row: rows.append(row)), checkpoints)
    return [value.tolist() for value in classifier.network.parameters()], rows


@pytest.mark.parametrize("processes", [1, 2])
def test_streamed_images_give_the_bits_of_resident_ones(stored, processes, monkeypatch):
    monkeypatch.setattr(engine, "VALIDATION_BATCH", 10)
    expected = trained(digits_split(100), data="resident", processes=1)
    assert trained(stored[1], data="streamed", processes=processes) == expected
    assert trained(stored[1], data="resident", processes=processes) == expected


def test_a_streamed_training_resumes_with_the_bits_of_a_resident_one(stored, tmp_path):
    expected = trained(digits_split(100), data="resident", processes=1)
    for stop in (1, 3, 5):
        checkpoints = Checkpoints(tmp_path / str(stop), every=3)  # in the middle of an epoch too
        with pytest.raises(StoppedError):
            trained(stored[1], checkpoints, stop_after(stop), data="streamed", processes=1)
        checkpoints.wait()
        assert trained(stored[1], Checkpoints(tmp_path / str(stop), every=3), data="streamed", processes=1) == expected


def test_a_thread_reads_two_batches_ahead_and_each_image_once(stored, monkeypatch):
    taken, threads = [], set()
    take = StoredSplit.take

    def recorded(self, indices, out):
        taken.extend(indices.tolist())
        threads.add(threading.current_thread())
        return take(self, indices, out)

    monkeypatch.setattr(StoredSplit, "take", recorded)
    params = train_params(batch_size=16, parts=2)
    steps = StreamedSteps(Engine(Classifier(LeNet5(1, 10), [0.24], [0.33]), params, CPU), stored[1])
    for epoch in (1, 2):
        taken.clear()
        steps.begin_epoch(epoch)
        steps.step(0)
        for reading in list(steps.read_ahead.coming):
            reading.result()
        assert len(taken) == 3 * 16
        for batch in range(1, steps.per_epoch):
            steps.step(batch)
        assert taken == steps.order.tolist()
        assert sorted(taken) == list(range(100))
    assert threading.main_thread() not in threads


def test_an_image_that_was_changed_is_named(stored):
    folder, split = stored
    path = folder / "train-00002-of-00004.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"train-00002-of-00004\.safetensors: image \d+ was changed: run dvc repro"):
        trained(split, data="streamed", processes=1)


@pytest.mark.parametrize(("free", "resident"), [(2 * 130 * 1024, True), (2 * 130 * 1024 - 1, False)])
def test_images_are_resident_if_they_take_half_of_the_free_memory(free, resident, monkeypatch):
    monkeypatch.setattr(sources, "free_memory", lambda device: free)
    splits = (digits_split(100), VALIDATION)
    assert are_resident("auto", splits, CPU) is resident
    assert are_resident("resident", splits, CPU)
    assert not are_resident("streamed", splits, CPU)


def test_images_in_several_files_are_read_while_a_cpu_trains(stored):
    splits = (stored[1], VALIDATION)
    assert not are_resident("auto", splits, CPU)
    assert are_resident("resident", splits, CPU)


@pytest.mark.parametrize(("data", "kind"), [("resident", Steps), ("streamed", StreamedSteps)])
def test_fit_takes_the_place_that_params_say(data, kind, monkeypatch):
    made = []
    make_steps = loop.make_steps

    def recorded(*arguments):
        made.append(make_steps(*arguments))
        return made[-1]

    monkeypatch.setattr(loop, "make_steps", recorded)
    trained(digits_split(40), data=data, processes=1)
    assert type(made[0]) is kind
    held_out = made[0].engine.held_out
    assert isinstance(held_out, torch.Tensor if data == "resident" else OnDisk)


def test_slices_of_images_on_disk_are_those_in_memory(stored):
    _, split = stored
    images, expected = OnDisk(split, CPU), torch.from_numpy(digits_split(100).images)
    assert images.shape == expected.shape
    assert len(images) == 100
    for rows in (slice(0, 7), slice(25, 70), slice(90, 1000), slice(0, 0)):
        assert torch.equal(images[rows], expected[rows])
    ahead = ReadAhead(images)
    for picked in ([3, 1], [99, 0, 50]):
        ahead.ask(torch.tensor(picked))
    assert torch.equal(ahead.next(), expected[[3, 1]])
    assert torch.equal(ahead.next(), expected[[99, 0, 50]])


def test_a_split_in_memory_can_be_streamed_too():
    assert trained(digits_split(60), data="streamed") == trained(digits_split(60), data="resident")
    assert OnDisk(Split(np.zeros((0, 1, 32, 32), np.uint8), np.zeros(0, np.int64)), CPU)[:1].shape == (0, 1, 32, 32)


@pytest.mark.gpu
def test_a_gpu_copies_streamed_images_from_pinned_memory(stored, cuda):
    images, picked = OnDisk(stored[1], cuda), torch.tensor([99, 0, 50])
    assert images.read(picked).is_pinned()
    ahead = ReadAhead(images)
    ahead.ask(picked)
    found = ahead.next()
    assert found.device.type == "cuda"
    assert torch.equal(found.cpu(), torch.from_numpy(digits_split(100).images)[picked])
