"""Checkpoints: a training that was killed goes on from the last one and ends with the bytes of one that was not.

They lie outside DVC's outputs, in `.pipeline/checkpoints/<fingerprint>-<slot>/` of the project's root, and are removed
once the stage has succeeded. The fingerprint covers params, data, code, versions and threads, so that a checkpoint of
something else is never picked up; the slot keeps apart trainings of the same thing at the same time. In the folder:

- `run`: the MLflow run's key (`classifier.tracking`), so that a resumed training continues its run
- `seed-<seed>/rows.jsonl`: the history so far, a row a line
- `seed-<seed>/<step>-<SHA-256 of the file>.safetensors`: the tensors of `Engine.state`, and `Position` as JSON in the
  file's header; the last two are kept

No generator's state is needed: order, augmentation and learning rate are functions of seed, epoch and step.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain, count
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from classifier.files import read_file, sha256, sha256_of, write_atomic
from classifier.history import Row
from classifier.lineage import project_root
from classifier.ownership import claim, release, remove
from classifier.params import Params, TrainParams

CHECKPOINTS = Path(".pipeline/checkpoints")  # in the project's root
KEPT = 2
ABANDONED_S = 14 * 24 * 3600  # after which a training that was killed is not expected to go on
LARGEST = 1 << 30  # bytes of any file


@dataclass(frozen=True)
class Position:
    """Where training stood; the rows are known by the length in bytes and the hash of what rows.jsonl held."""

    step: int  # optimizer steps done
    window: int  # of them in the window that is open
    rows_bytes: int
    rows_sha256: str


@dataclass(frozen=True)
class Checkpoint:
    position: Position
    rows: list[Row]
    tensors: dict[str, Tensor]


class Checkpoints:
    """Of one seed's training, in a folder of their own."""

    def __init__(self, folder: Path, every: int) -> None:
        self.folder = folder
        self.every = every  # optimizer steps
        self.rows_path = folder / "rows.jsonl"
        self.rows = b""  # those that the next checkpoint writes to rows.jsonl
        self.rows_bytes = 0
        self.rows_hash = hashlib.sha256()  # of all rows
        self.writer = ThreadPoolExecutor(1)
        self.writing: Future[None] = self.writer.submit(lambda: None)

    def load(self) -> Checkpoint | None:
        """The newest whole checkpoint, and what was written after it is dropped; a damaged one is named and dropped."""
        for path in self._files(reverse=True):
            try:
                checkpoint = self._read(path)
            except ValueError as error:
                print(f"checkpoint {path} is damaged ({error}): it is dropped", file=sys.stderr)
                path.unlink()
                continue
            except OSError as error:
                print(f"checkpoint {path} cannot be read ({error}): the one before is used", file=sys.stderr)
                continue
            position = checkpoint.position
            content = self.rows_path.read_bytes()[: position.rows_bytes]
            write_atomic(self.rows_path, content)
            self.rows_bytes, self.rows_hash = len(content), hashlib.sha256(content)
            return checkpoint
        shutil.rmtree(self.folder, ignore_errors=True)
        return None

    def _files(self, reverse: bool = False) -> list[Path]:
        return sorted(self.folder.glob("*-*.safetensors"), reverse=reverse)

    def _read(self, path: Path) -> Checkpoint:
        content = read_file(path, LARGEST)
        if sha256(content) != path.stem.partition("-")[2]:
            raise ValueError("its bytes do not have the SHA-256 of its name")
        try:
            tensors = load(content)
            with safe_open(path, "pt") as file:
                position = TypeAdapter(Position).validate_json((file.metadata() or {}).get("position", ""))
            rows = read_file(self.rows_path, LARGEST)[: position.rows_bytes]
            if sha256(rows) != position.rows_sha256:
                raise ValueError("the history beside it is another")
            return Checkpoint(position, [TypeAdapter(Row).validate_json(line) for line in rows.splitlines()], tensors)
        except (SafetensorError, ValidationError, OSError) as error:
            raise ValueError(" ".join(str(error).split())[:200]) from None

    def add(self, row: Row) -> None:
        """A row of the history, which the next checkpoint will hold."""
        line = json.dumps(asdict(row)).encode() + b"\n"
        self.rows += line
        self.rows_hash.update(line)

    def save(self, step: int, window: int, tensors: Mapping[str, Tensor]) -> None:
        """Write a checkpoint while training goes on; waits for the one before, and raises what went wrong with it.

        Not after a step that was not finite: training will stop at the window's end, and the last good state counts.
        """
        self.wait()
        if tensors["sums/bad"]:
            return
        self.rows_bytes += len(self.rows)
        position = Position(step, window, self.rows_bytes, self.rows_hash.hexdigest())
        self.writing = self.writer.submit(self._write, position, self.rows, dict(tensors))
        self.rows = b""

    def wait(self) -> None:
        """Until the last checkpoint is on the disk: 10 to 20 ms, which training need not stand still for."""
        self.writing.result()

    def _write(self, position: Position, rows: bytes, tensors: dict[str, Tensor]) -> None:
        """Flushed to disk, read back and compared before it gets its name; then all but the last two are removed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.rows_path.open("ab") as file:
            file.write(rows)
            file.flush()
            os.fsync(file.fileno())
        content = save(tensors, {"position": json.dumps(asdict(position))})
        write_atomic(self.folder / f"{position.step:012d}-{sha256(content)}.safetensors", content, verify=True)
        for path in self._files()[:-KEPT]:
            path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Work:
    """One training's place among the checkpoints: its key, and a folder unless checkpoints are turned off."""

    key: str
    folder: Path | None
    every: int

    def run_key(self, params: Params) -> str:
        """The key of the run; MLflow lets no run change its params, and some of them leave the checkpoint as it is."""
        return f"{self.key}-{sha256(json.dumps(params.flat(), sort_keys=True).encode())[:16]}"

    def of_seed(self, seed: int) -> Checkpoints | None:
        return Checkpoints(self.folder / f"seed-{seed}", self.every) if self.folder else None


NO_WORK = Work("", None, 0)


@contextmanager
def checkpointed(fingerprint: str, every: int) -> Iterator[Work]:
    """The place for a training, an earlier one's that was killed or a new one; removed when the block succeeds."""
    key = uuid.uuid4().hex
    if not every:
        yield Work(key, None, every)
        return
    folder, handle = _claim_place(project_root() / CHECKPOINTS, fingerprint[:16])
    for leftover in folder.rglob(".*.tmp"):
        leftover.unlink()
    known = folder / "run"
    if known.exists():
        key = known.read_text(encoding="utf-8")
    else:
        write_atomic(known, key.encode())
    try:
        yield Work(key, folder, every)
        remove(folder)
        _remove_abandoned(folder.parent)
    finally:
        release(handle)


def _claim_place(root: Path, name: str) -> tuple[Path, int]:
    """The first that is free, those of trainings that were killed before new ones."""
    for path in chain(sorted(root.glob(f"{name}-*")), (root / f"{name}-{slot}" for slot in count())):
        if (handle := claim(path)) is not None:
            return path, handle
    raise AssertionError("slots have no end")


def _remove_abandoned(root: Path) -> None:
    """Those of other trainings that nobody has gone on with for long: of params or code that are no more."""
    for folder in root.glob("*-*"):
        try:
            newest = max((path.stat().st_mtime for path in folder.rglob("*")), default=0)
        except FileNotFoundError:
            continue  # somebody is at work there
        if newest < time.time() - ABANDONED_S and (handle := claim(folder)) is not None:
            remove(folder)
            release(handle)


def fingerprint_of(params: TrainParams, data: Path, environment: Mapping[str, str]) -> str:
    """SHA-256 over all that the bits of a training depend on."""
    package = Path(__file__).parent
    code = {path.name: sha256_of(path) for path in sorted(package.glob("*.py"))}
    values = [params.model_dump(exclude={"checkpoint_every"}), sha256_of(data / "meta.json"), dict(environment), code]
    return sha256(json.dumps(values, sort_keys=True).encode())
