"""Checkpoints: an interrupted training resumes from the last one and ends with the bytes of an uninterrupted one.

They are outside DVC's outputs, in `.pipeline/checkpoints/<fingerprint>-<slot>/` of the project's root, and are removed
once the stage has succeeded. The fingerprint covers what decides the bits: params, data, code (this package's and the
stage's file) and arithmetic with the versions of its libraries (`classifier.training.parts`), not the machine's cores.
The slot separates trainings with the same fingerprint that run at the same time. In the folder:

- `run`: the MLflow run's key (`classifier.tracking.delivery`), so that a resumed training continues its run
- `seed-<seed>/<step>-<SHA-256 of the file>.safetensors`: the tensors of `Engine.state`; `rows`, the history so far, a
  line of JSON per row; `Position` as JSON in the file's header. The last two are kept; each is complete

20,000 rows make a file 4 MB larger and its writing, in a separate thread, 10 ms longer.

No generator state is needed: order, augmentation and learning rate are functions of seed, epoch and step.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated
from uuid import uuid4

import numpy as np
import torch
from pydantic import Field, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from classifier.errors import UserError
from classifier.networks.manifest import MANIFEST
from classifier.networks.names import code_of
from classifier.params import Params, TrainParams
from classifier.project.files import read_file, sha256, sha256_of, write_atomic
from classifier.project.lineage import project_root
from classifier.project.resuming import own_code, resumable_run
from classifier.training.history import HistoryRow

CHECKPOINTS = Path(".pipeline/checkpoints")  # in the project's root
KEPT = 2
LARGEST = 1 << 36  # bytes of any file


@dataclass(frozen=True)
class Position:
    """The position of a training."""

    step: Annotated[int, Field(ge=1, lt=10**12)]  # optimizer steps done; as many digits as a file's name has
    window: Annotated[int, Field(ge=0, lt=10**12)]  # of these, in the current window


@dataclass(frozen=True)
class Checkpoint:
    position: Position
    rows: list[HistoryRow]
    tensors: dict[str, Tensor]


class Checkpoints:
    """The checkpoints of one seed's training, in a folder of their own."""

    def __init__(self, folder: Path, every: int) -> None:
        self.folder = folder
        self.every = every  # optimizer steps
        self.rows = bytearray()  # all so far, a line of JSON each
        self.writer = ThreadPoolExecutor(1)
        self.writing: Future[None] = self.writer.submit(lambda: None)

    def load(self, epochs: int, per_epoch: int, window: int, models: int = 1) -> Checkpoint | None:
        """The newest valid checkpoint of a training with so many epochs, steps per epoch and per window, and models.

        A corrupt checkpoint is reported and removed. One that cannot be read may be readable the next time: nothing is
        removed, and OSError names it, so that no work is repeated unnoticed.
        """
        for path in reversed(self._files()):
            try:
                content = read_file(path, LARGEST)
            except (OSError, ValueError) as error:
                raise OSError(
                    f"checkpoint {path} cannot be read ({error}), nothing was removed: run again, or remove it to "
                    "resume from the previous one"
                ) from None
            try:
                checkpoint = _parse(content, path.stem.partition("-")[2])
                _verify(checkpoint, epochs, per_epoch, window, models)
            except ValueError as error:
                print(f"checkpoint {path} is corrupt ({error}): removed", file=sys.stderr)
                path.unlink()
                continue
            for row in checkpoint.rows:
                self.add(row)
            return checkpoint
        return None

    def _files(self) -> list[Path]:
        """Oldest first. Raises OSError if the folder cannot be listed, where `glob` would find no files."""
        try:
            return sorted(path for path in self.folder.iterdir() if path.match("*-*.safetensors"))
        except FileNotFoundError:
            return []

    def add(self, row: HistoryRow) -> None:
        """Add a row of the history to the next checkpoint."""
        self.rows += json.dumps(asdict(row)).encode() + b"\n"

    def save(self, step: int, window: int, tensors: Mapping[str, Tensor]) -> None:
        """Write a checkpoint while training continues. Waits for the previous one, and raises its error, if any."""
        self.wait()
        self.writing = self.writer.submit(self._write, Position(step, window), bytearray(self.rows), dict(tensors))

    def wait(self) -> None:
        """Wait until the last checkpoint is on the disk, 10 to 20 ms after `save`."""
        self.writing.result()

    def _write(self, position: Position, rows: bytearray, tensors: dict[str, Tensor]) -> None:
        """Write, flush, read back and compare a file before it gets its name; then remove all but the last two.

        Writes nothing after a step that was not finite: training stops at the window's end, and the last finite state
        counts. This thread asks for that, because the answer has to wait for the GPU.
        """
        if tensors["sums/found_inf"]:
            return
        tensors["rows"] = torch.from_numpy(np.frombuffer(rows, np.uint8))
        content = save(tensors, {"position": json.dumps(asdict(position))})
        write_atomic(self.folder / f"{position.step:012d}-{sha256(content)}.safetensors", content, verify=True)
        for path in self._files()[:-KEPT]:
            path.unlink(missing_ok=True)


def _parse(content: bytes, known: str) -> Checkpoint:
    """Raises UserError unless the bytes have the SHA-256 `known` and are a checkpoint."""
    if sha256(content) != known:
        raise UserError("its bytes do not have the SHA-256 in its name")
    try:
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        position = TypeAdapter(Position).validate_json(header.get("__metadata__", {}).get("position", ""))
        rows = tensors.pop("rows", None)
        if rows is None or rows.dtype != torch.uint8:
            raise UserError("it has no rows")
        read_row = TypeAdapter(HistoryRow).validate_json
        return Checkpoint(position, [read_row(line) for line in rows.numpy().tobytes().splitlines()], tensors)
    except (SafetensorError, ValidationError) as error:
        raise UserError(" ".join(str(error).split())[:200]) from None


def _verify(checkpoint: Checkpoint, epochs: int, per_epoch: int, window: int, models: int) -> None:
    """Raises UserError unless the checkpoint fits such a training: its rows end windows or epochs, one per model."""
    step, opened, total = checkpoint.position.step, checkpoint.position.window, epochs * per_epoch
    if step > total:
        raise UserError(f"it is at step {step} of a training of {total}")
    done, rest = divmod(step, per_epoch)
    if opened != rest % window:
        raise UserError(f"at step {step} it has {opened} steps in the window, instead of {rest % window}")
    rows = -(-per_epoch // window)  # of each epoch
    ends = [
        number // rows * per_epoch + min((number % rows + 1) * window, per_epoch)
        for number in range(done * rows + rest // window)
    ]
    if [row.step for row in checkpoint.rows] != [end for end in ends for _ in range(models)]:
        raise UserError(f"its {len(checkpoint.rows)} rows do not fit {step} steps")


@dataclass(frozen=True)
class Work:
    """One training's place among the checkpoints: its key, and a folder unless checkpoints are turned off."""

    key: str
    folder: Path | None
    every: int

    def run_key(self, params: Params) -> str:
        """The run's key, of all params: a checkpoint stays valid when some of them change, an MLflow run does not."""
        return f"{self.key}-{params.digest}"

    def saved_step(self) -> int | None:
        """The step of the newest checkpoint of all seeds; None if there is none."""
        files = self.folder.glob("seed-*/*-*.safetensors") if self.folder else []
        return max((int(path.name.partition("-")[0]) for path in files), default=None)

    def of_seed(self, seed: int) -> Checkpoints | None:
        return Checkpoints(self.folder / f"seed-{seed}", self.every) if self.folder else None


NO_WORK = Work("", None, 0)


@contextmanager
def checkpointed(fingerprint: str, every: int) -> Iterator[Work]:
    """Yield the place of a training: that of a killed one, or a new one. It is removed when the block succeeds."""
    if not every:
        yield Work(uuid4().hex, None, every)
        return
    with resumable_run(project_root() / CHECKPOINTS, fingerprint[:16]) as (folder, key):
        for leftover in folder.rglob(".*.tmp"):
            leftover.unlink()
        yield Work(key, folder, every)


def fingerprint_of(
    params: TrainParams, data: Path, environment: Mapping[str, str], stage: Path, pretrained: Path | None = None
) -> str:
    """SHA-256 over `deciding`."""
    return sha256(json.dumps(deciding(params, data, environment, stage, pretrained), sort_keys=True).encode())


def deciding(
    params: TrainParams, data: Path, environment: Mapping[str, str], stage: Path, pretrained: Path | None = None
) -> dict[str, str]:
    """Everything that the bits of a training depend on, by name; `stage`: the stage's file."""
    weights = sha256_of(pretrained / MANIFEST) if params.pretrained and pretrained else ""
    code = own_code() | {"the stage": sha256_of(stage)}
    values = params.model_dump(exclude={"checkpoint_every", "processes", "data"})
    return {
        "params": sha256(json.dumps(values, sort_keys=True).encode()),
        "data": sha256_of(data / "meta.json"),
        "pretrained": weights,
        "code": sha256(json.dumps(code, sort_keys=True).encode()),
        "network": code_of(params.network),
        **environment,
    }
