"""Fuzzes every reader with mutated files: each must be read, or refused in one line.

    python -m tests.faults.fuzz SECONDS [SEED]

Mutated files get the right hash, so that they reach the parser behind the hash check. Prints the number of files read
and refused, and the rate; saves files with any other outcome and then exits with status 1.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import random
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torchvision  # noqa: F401, the reader of a model of an unknown network loads it, which opens libraries
from safetensors.torch import save

from classifier.data.cifar import read_archive
from classifier.data.dataset import read_meta, read_split
from classifier.data.formats import digits_csv, idx
from classifier.data.pixels import BadImageError, decode
from classifier.data.preprocessing import Preprocessing
from classifier.networks.model_dir import build, read_model, write_model
from classifier.params import parse_params
from classifier.project.checksummed import CHECKSUM
from classifier.project.files import json_bytes, sha256
from classifier.sources.catalog import origin
from classifier.sources.images import open_files, write_images
from classifier.sources.listing import Entry, Listing
from classifier.sources.raw import read_raw, write_manifest
from classifier.sources.table import lay_out_by
from classifier.training.checkpoint import Checkpoints
from classifier.training.engine import Engine
from classifier.training.history import HistoryRow, read_history, write_history
from classifier.training.report import verify_training, write_training
from tests import tiny_files
from tests.data.test_difficult import REFUSED
from tests.difficult import KINDS, photo
from tests.faults.watch import nothing_happens
from tests.photos import download_params, pets, write_tar, write_zip
from tests.samples import COSTS, ROOT, file_params, train_params, write_digits

SLOW_S = 2.0  # slower cases run a second time before they count, because the machine may be busy
LONGEST_LINE = 1500  # characters
LISTS = ("params.yaml", "table.csv", "table.parquet")  # refused with a line for each problem
ROWS = [HistoryRow(10, 1, 320, 0.1, 2.3), HistoryRow(12, 1, 340, 0.1, None, 2.0, 1.9, 0.8)]
TOKENS = [
    *(b"NaN", b"Infinity", b"-1", b"0", b"1e400", b"9" * 30, b"18446744073709551615", b"null", b"true", b'""', b"[]"),
    *(b"{}", b'"../../x"', b"[" * 2000, b"{" * 200, b"\\ud800", b"\x00", b"\xff\xfe", b"\n", b",", b":", b"F64", b"U8"),
    *(b"data_offsets", b"__metadata__", b"shape", b"dtype", b"!!python/name:os.system ", b"&a [*a]", b"$(touch ran)"),
    *(b"\xff" * 8, b"\x00" * 8, b"\x80\x04c", b"cos\nsystem\n(S'touch ran'\ntR.", b"PK\x03\x04", b"\x1f\x8b\x08"),
]


@dataclass(frozen=True)
class Reader:
    """A reader under test: `content` is a valid file, `feed(content)` gives the reader other content.

    It refuses a file by an exception of `refuses_by`, and takes less than `slow_s` seconds.
    """

    name: str
    content: bytes
    feed: Callable[[bytes], Any]
    refuses_by: tuple[type[Exception], ...] = (ValueError, OSError)
    slow_s: float = SLOW_S


def mutated(content: bytes, chance: random.Random) -> bytes:
    """Apply one to four edits (bits, bytes, slices, numbers, tokens), mostly near the start, where headers are."""
    edited = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 4))):
        length = len(edited)
        near = length if chance.random() < 0.3 else min(length, 1500)
        at = chance.randrange(near + 1)
        end = min(length, at + chance.choice((1, 2, 8, 64, 1000)))
        match chance.randrange(8):
            case 0 if at < length:
                edited[at] ^= 1 << chance.randrange(8)
            case 1 if at < length:
                edited[at] = chance.randrange(256)
            case 2:
                del edited[at:end]
            case 3:
                edited[at:at] = edited[at:end]
            case 4:
                del edited[at:]
            case 5:
                edited[at:at] = chance.choice(TOKENS)
            case 6:
                edited[at:end] = chance.choice(TOKENS)
            case 7 if found := [place for place in range(min(length, 1500)) if 48 <= edited[place] <= 57]:
                place = chance.choice(found)
                edited[place : place + 1] = str(chance.choice((0, 1, 7, 255, 2**31, 2**63, -1))).encode()
    return bytes(edited)


def with_checksum(content: bytes, **values: Any) -> bytes:
    """Correct the checksum of a JSON file; content that is not a JSON object is returned unchanged."""
    try:
        changed = json.loads(content)
        changed.pop(CHECKSUM, None)
        changed |= values
        return json_bytes(changed | {CHECKSUM: sha256(json_bytes(changed))})
    except (ValueError, AttributeError, TypeError, RecursionError):
        return content


def with_crcs(content: bytes) -> bytes:
    """Correct the checksums of a PNG's chunks; other content is returned unchanged."""
    edited, start = bytearray(content), 8
    while edited.startswith(b"\x89PNG") and start + 12 <= len(edited):
        end = start + 8 + int.from_bytes(edited[start : start + 4])
        if end + 4 <= len(edited):
            edited[end : end + 4] = zlib.crc32(edited[start + 4 : end]).to_bytes(4)
        start = end + 4
    return bytes(edited)


def readers(folder: Path) -> list[Reader]:
    """All readers of the pipeline, each with its own folder."""
    data, model, training, raw = (folder / name for name in ("data", "model", "training", "raw"))
    meta = write_digits(data)
    write_model(model, {0: build(meta)}, 0, meta)
    write_training(training, {0: ROWS}, 0, COSTS)
    write_history(folder / "history.csv", ROWS)
    source = origin("digits")
    assert source.installed
    raw.mkdir()
    (raw / "digits.csv.gz").write_bytes((source.installed / "digits.csv.gz").read_bytes())
    write_manifest(raw, "digits", source)
    weights, known = (model / "weights.safetensors").read_bytes(), (model / "meta.json").read_bytes()

    def forged_weights(content: bytes) -> None:
        (model / "weights.safetensors").write_bytes(content)
        (model / "meta.json").write_bytes(with_checksum(known, weights_sha256=sha256(content)))
        read_model(model)

    def forged_model_meta(content: bytes) -> None:
        (model / "weights.safetensors").write_bytes(weights)
        (model / "meta.json").write_bytes(with_checksum(content))
        read_model(model)

    def forged_split(content: bytes) -> None:
        (data / "test.safetensors").write_bytes(content)
        file = meta.files["test"][0].model_copy(update={"sha256": sha256(content)})
        forged = meta.model_copy(update={"files": meta.files | {"test": [file]}})
        read_split(data, "test", forged)

    def checksummed(path: Path, read: Callable[[], Any]) -> Reader:
        def feed(content: bytes) -> None:
            path.write_bytes(with_checksum(content))
            read()

        return Reader(f"{path.parent.name}/{path.name}", path.read_bytes(), feed)

    def history(content: bytes) -> None:
        (folder / "history.csv").write_bytes(content)
        read_history(folder / "history.csv")

    def text(content: bytes) -> None:
        parse_params(content.decode("utf-8", "replace"), Path("params.yaml"))

    def batch(content: bytes) -> None:
        members = {f"cifar-10-batches-bin/{name}.bin": batches[name] for name in batches} | {
            "cifar-10-batches-bin/data_batch_1.bin": content
        }
        read_archive("cifar", tiny_files.cifar_archive(members))

    def source(content: bytes) -> None:
        (folder / "photos").write_bytes(content)
        (folder / "described").mkdir(exist_ok=True)
        described = folder / "described"
        write_images(described, open_files(folder / "photos", described), download_params("photos"))

    def table(content: bytes) -> None:
        listing = Listing([Entry(name) for name in photos], [], {})
        lay_out_by(content, listing, download_params("photos", table="labels"))

    photos = pets(3)
    rows = [(name, name.split("/")[0], split, "") for name in photos for split in ("train",)]
    csv_table = "\n".join(",".join(row) for row in [("path", "label", "split", "group"), *rows]).encode()
    parquet = pd.DataFrame(rows, columns=["path", "label", "split", "group"]).to_parquet(engine="pyarrow")
    packed = [write_zip(folder / "z", photos), write_zip(folder / "d", photos, 8), write_tar(folder / "t", photos)]
    packed.append(write_tar(folder / "g", photos, "w:gz"))
    batches = {name: tiny_files.cifar_batch(*value) for name, value in tiny_files.cifar_arrays(1).items()}
    images = gzip.decompress(tiny_files.mnist()["train-images-idx3-ubyte.gz"])
    archive = gzip.decompress(tiny_files.cifar10(1)["cifar-10-binary.tar.gz"])
    return [
        Reader("weights.safetensors", weights, forged_weights),
        Reader("model/meta.json", known, forged_model_meta),
        Reader("split.safetensors", (data / "test.safetensors").read_bytes(), forged_split),
        checksummed(data / "meta.json", lambda: read_meta(data)),
        checksummed(raw / "manifest.json", lambda: read_raw(raw)),
        checksummed(training / "manifest.json", lambda: verify_training(training)),
        *checkpoint_readers(folder / "seed-0"),
        Reader("history.csv", (folder / "history.csv").read_bytes(), history),
        Reader("params.yaml", (ROOT / "params.yaml").read_bytes(), text),
        Reader("idx", images, lambda content: idx("idx", gzip.compress(content, 1), (28, 28))),
        Reader("idx.gz", gzip.compress(images), lambda content: idx("idx", content, (28, 28))),
        Reader(
            "digits.csv",
            b"\n".join(gzip.decompress((raw / "digits.csv.gz").read_bytes()).split(b"\n")[:20]),
            lambda content: digits_csv("digits", gzip.compress(content, 1)),
        ),
        *image_readers(),
        *(Reader(f"images in {path.name}", path.read_bytes(), source) for path in packed),
        Reader("table.csv", csv_table, table),
        Reader("table.parquet", parquet, table),
        Reader("cifar batch", batches["data_batch_1"], batch),
        Reader(
            "cifar archive",
            archive,
            lambda content: read_archive("cifar", gzip.compress(content, 1)),
        ),
    ]


def image_readers() -> list[Reader]:
    """One for each kind of image file. A header may claim all the pixels that are allowed, which take seconds."""
    rule = Preprocessing(image_size=24, margin=0, resize="pad", channels=3, invert=False)
    image = photo(np.random.default_rng(0))

    def pixels(content: bytes) -> None:
        found = decode(with_crcs(content), rule)
        assert (found.shape, found.dtype) == ((3, 24, 24), np.uint8)

    return [
        Reader(name, make(image, 0), pixels, (BadImageError,), 10 * SLOW_S)
        for name, make in KINDS.items()
        if name not in REFUSED
    ]


def checkpoint_readers(folder: Path) -> list[Reader]:
    """Readers of checkpoints, loaded into an engine. Dropping a corrupt one with a message is not an error."""
    params = train_params()
    engine = Engine(build(write_digits(folder.with_name("checkpointed"))), params, torch.device("cpu"))
    checkpoints = Checkpoints(folder, 1)
    for row in ROWS:
        checkpoints.add(row)
    plan = (1, ROWS[-1].step, ROWS[0].step)  # epochs, steps in each and in a window
    checkpoints.save(ROWS[-1].step, 0, engine.state())
    checkpoints.wait()
    (saved,) = folder.glob("*.safetensors")
    content = saved.read_bytes()
    assert Checkpoints(folder, 1).load(*plan), "the unedited checkpoint must load"

    def load(checkpoint: bytes) -> None:
        folder.mkdir(exist_ok=True)
        for path in folder.iterdir():
            path.unlink()
        (folder / f"000000000012-{sha256(checkpoint)}.safetensors").write_bytes(checkpoint)
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            found = Checkpoints(folder, 1).load(*plan)
        if found is None:
            raise ValueError(said.getvalue().strip())
        Engine(engine.classifier, params, torch.device("cpu")).load(found.tensors)

    def forged_rows(history: bytes) -> None:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        rows = torch.frombuffer(bytearray(history or b" "), dtype=torch.uint8)
        load(save(engine.state() | {"rows": rows}, header["__metadata__"]))

    return [
        Reader("checkpoint", content, load),
        Reader("checkpoint's rows", bytes(checkpoints.rows), forged_rows),
    ]


def outcome(reader: Reader, content: bytes) -> str:
    """Return `read` or `refused`; raises AssertionError for any other outcome."""
    ended, took = timed(reader, content)
    if took >= reader.slow_s:
        ended, took = timed(reader, content)
    assert took < reader.slow_s, f"it took {took:.1f} s"
    return ended


def timed(reader: Reader, content: bytes) -> tuple[str, float]:
    """Return the outcome and the seconds that it took."""
    started = time.monotonic()
    try:
        reader.feed(content)
        ended = "read"
    except reader.refuses_by as error:
        said = str(error)
        assert reader.name in LISTS or "\n" not in said, f"not one line: {said!r:.500}"
        assert reader.name in LISTS or len(said) <= LONGEST_LINE, f"{len(said)} characters: {said!r:.500}"
        ended = "refused"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise AssertionError(f"{type(error).__name__}: {error}"[:500]) from error
    return ended, time.monotonic() - started


def main(seconds: float, seed: int = 0) -> int:
    chance, counts = random.Random(seed), Counter[str]()
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        folder = Path(name).resolve()
        known = readers(folder)
        for reader in known:
            assert outcome(reader, reader.content) == "read", f"{reader.name}: the unedited file is refused"
        started = time.monotonic()
        while time.monotonic() - started < seconds:
            for reader in known:
                content = mutated(reader.content, chance)
                try:
                    with nothing_happens(but_within=folder):
                        counts[f"{reader.name} {outcome(reader, content)}"] += 1
                except AssertionError as error:
                    counts[f"{reader.name} WRONG"] += 1
                    kept = Path(tempfile.gettempdir()) / f"fuzz-{sha256(content)[:12]}"
                    kept.write_bytes(content)
                    print(f"{reader.name}, seed {seed}, kept as {kept}: {error}", file=sys.stderr, flush=True)
        assert not (folder / "ran").exists()
    took, total = time.monotonic() - started, counts.total()
    for name, count in sorted(counts.items()):
        print(f"{name:32} {count:>10,}")
    print(f"{total:,} files in {took:.0f} s, {total / took:.0f} a second, seed {seed}")
    return int(any("WRONG" in name for name in counts))


if __name__ == "__main__":
    assert file_params()
    sys.exit(main(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0))
