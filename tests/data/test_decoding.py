from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import psutil
import pytest
from PIL import Image

from classifier.data import decoding
from classifier.data.decoding import Decoder, decode_all, joined, read_pixels
from classifier.data.pixels import Preprocessing, decode
from classifier.errors import UserError
from tests.difficult import file_of
from tests.samples import ROOT

RULE = Preprocessing(image_size=8, margin=0, resize="pad", channels=3, invert=False)
GENERATOR = np.random.default_rng(0)
FILES = [
    file_of(Image.fromarray(GENERATOR.integers(0, 256, (8, 6, 3), np.uint8)), "PNG") if number % 10 else b"no image"
    for number in range(45)
]


@dataclass(frozen=True)
class Record:
    place: int
    sha256: str | None


RECORDS = tuple(Record(number, hashlib.sha256(content).hexdigest()) for number, content in enumerate(FILES))


def read(record):
    return FILES[record.place]


@dataclass(frozen=True)
class Source:
    read: Callable[[Record], bytes] = read
    all: Sequence[Record] = RECORDS

    def records(self, start, stop):
        return self.all[start:stop]

    def decode(self, folder, processes, advance=lambda count: None, rule=RULE):
        return decode_all(Decoder(self, rule, folder), [record.sha256 for record in self.all], processes, advance)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(decoding, "CHUNK_IMAGES", 4)


def decoded(folder, processes=1, records=RECORDS, reader=read):
    folder.mkdir(exist_ok=True)
    counted = []
    chunks = Source(reader, records).decode(folder, processes, counted.append)
    assert sum(counted) == len(records)
    return chunks


@pytest.mark.parametrize("processes", [1, 3])
def test_all_files_are_decoded_in_order_and_the_bad_ones_named(tmp_path, processes):
    chunks = decoded(tmp_path / "work", processes)
    good = [number for number in range(45) if number % 10]
    facts = joined([chunk.facts for chunk in chunks])
    expected = np.stack([decode(FILES[number], RULE) for number in good])
    assert facts.numbers.tolist() == good
    assert np.array_equal(np.concatenate([read_pixels(chunk.path) for chunk in chunks]), expected)
    assert [digest.tobytes() for digest in facts.digests] == [hashlib.sha256(image).digest() for image in expected]
    values = expected.reshape(len(good), 3, -1).astype(int)
    assert np.array_equal(facts.sums, np.stack([values.sum(2), (values**2).sum(2)], 2))
    problems = {number: reason for chunk in chunks for number, reason in chunk.problems.items()}
    assert problems == dict.fromkeys(range(0, 45, 10), "not an image, or its header is damaged")


def test_a_record_without_a_file_is_passed_over_and_keeps_its_number(tmp_path):
    records = [Record(0, None), *RECORDS[1:4], *[Record(0, None)] * 4, *RECORDS[8:]]
    chunks = decoded(tmp_path / "work", 2, records)
    assert joined([chunk.facts for chunk in chunks]).numbers.tolist() == [
        number for number in range(1, 45) if number % 10 and not 4 <= number < 8
    ]
    assert [number for chunk in chunks for number in chunk.problems] == [10, 20, 30, 40]


def test_what_was_decoded_before_is_not_decoded_again_and_a_damaged_chunk_is(tmp_path):
    work, seen = tmp_path / "work", []

    def counting(record):
        seen.append(record.place)
        return read(record)

    first = decoded(work, reader=counting)
    assert seen == list(range(45))
    seen.clear()
    path = first[2].path
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    (work / "half-written.4711").touch()
    again = decoded(work, reader=counting)
    assert seen == list(range(8, 12))
    assert [chunk.path.name for chunk in again] == [chunk.path.name for chunk in first]
    assert {path.name for path in work.iterdir()} == {chunk.path.name for chunk in first}
    for before, after in zip(first, again, strict=True):
        assert np.array_equal(before.facts.numbers, after.facts.numbers)
        assert np.array_equal(before.facts.digests, after.facts.digests)
        assert before.problems == after.problems


def test_after_a_repaired_file_its_chunk_alone_is_decoded_again(tmp_path):
    work, seen = tmp_path / "work", []
    decoded(work)

    def counting(record):
        seen.append(record.place)
        return FILES[11] if record.place == 10 else read(record)

    records = [*RECORDS[:10], Record(10, "repaired"), *RECORDS[11:]]
    chunks = decoded(work, records=records, reader=counting)
    assert seen == [8, 9, 10, 11]
    assert 10 in joined([chunk.facts for chunk in chunks]).numbers


def test_equal_chunks_are_decoded_once(tmp_path):
    records = [RECORDS[number % 4] for number in range(12)]
    chunks = decoded(tmp_path / "work", records=records)
    assert len(list((tmp_path / "work").iterdir())) == 1
    assert joined([chunk.facts for chunk in chunks]).numbers.tolist() == [1, 2, 3, 5, 6, 7, 9, 10, 11]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_file_that_changed_stops_the_decoding(tmp_path, processes):
    def changed(record):
        if record.place == 20:
            raise UserError("photos: 'a.png' has SHA-256 1")
        return read(record)

    with pytest.raises(UserError, match=r"'a\.png' has SHA-256 1"):
        decoded(tmp_path / "work", processes, reader=changed)


def test_a_killed_decoding_process_is_told(tmp_path):
    def deadly(record):
        if record.place == 20:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(record)

    with pytest.raises(UserError, match=r"a decoding process exited .*: run again, decoding resumes"):
        decoded(tmp_path / "work", 2, reader=deadly)


SLOW = """
import sys, time
from pathlib import Path
from tests.data.test_decoding import *

def slow(record):
    time.sleep(0.02)
    return read(record)

decoding.CHUNK_IMAGES = 4
Source(slow).decode(Path(sys.argv[1]), 2)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_process_outlives_a_decoding_that_was_stopped(tmp_path, number):
    work = tmp_path / "work"
    work.mkdir()
    command = [sys.executable, "-c", SLOW, str(work)]
    main = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    while not list(work.glob("*.safetensors")):
        assert main.poll() is None, "it ended before it was stopped"
        time.sleep(0.01)
    workers = psutil.Process(main.pid).children()
    assert len(workers) == 2
    main.send_signal(number)
    main.wait(20)
    _, alive = psutil.wait_procs(workers, 5)
    assert not alive
    kept = {path.name for path in work.glob("*.safetensors")}
    chunks = decoded(work)
    assert 0 < len(kept) < len(chunks)
    assert kept < {chunk.path.name for chunk in chunks}


@pytest.mark.slow
def test_memory_holds_a_chunk_not_the_set(tmp_path):
    script = (
        "import resource, sys\nfrom pathlib import Path\nfrom tests.data.test_decoding import *\n"
        "decoding.CHUNK_IMAGES = 4\n"
        "rule = Preprocessing(image_size=256, margin=0, resize='stretch', channels=3, invert=False)\n"
        "records = [Record(n % 45, str(n)) for n in range(int(sys.argv[2]))]\n"
        "Source(read, records).decode(Path(sys.argv[1]), 1, rule=rule)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    peaks = []
    for count in (20, 300):
        folder = tmp_path / str(count)
        folder.mkdir()
        command = [sys.executable, "-c", script, str(folder), str(count)]
        peaks.append(int(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout))
    assert peaks[1] - peaks[0] < 20_000, "KiB; all pixels are 59 MB"
