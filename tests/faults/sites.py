"""Every place where the pipeline writes: how it writes two versions, and what the next stage reads of them."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from classifier.commands import recipe
from classifier.data.dataset import Split, read_meta, write_meta, write_split
from classifier.data.writing import SplitWriter
from classifier.evaluation.report import write_evaluation
from classifier.networks.manifest import write_none
from classifier.networks.model_dir import build, read_model_meta, write_model
from classifier.project.files import replacing, sha256, write_atomic
from classifier.project.ownership import claim
from classifier.recording import journal
from classifier.sources.catalog import SourceFile, origin
from classifier.sources.images import write_images
from classifier.sources.listing import Folder
from classifier.sources.raw import read_raw, write_manifest
from classifier.sources.transfer import fetch
from classifier.training import seeds
from classifier.training.checkpoint import Checkpoints, checkpointed
from classifier.training.history import HistoryRow, write_history
from classifier.training.report import verify_training, write_training
from tests.evaluation.samples import evaluation_of, noisy_predictions
from tests.evaluation.samples import params as evaluate_params
from tests.photos import download_params, pets, write_files
from tests.samples import COSTS, ROOT, digits_split, train_params, write_digits

Strike = Callable[[], None]  # called where the fault starts
ROW = HistoryRow(10, 1, 320, 0.1, 2.3, 2.2, 2.1, 0.5)
PLAN = (9, 1, 1)  # epochs, steps per epoch, steps per window


@dataclass(frozen=True)
class Site:
    """A place that writes: `write(folder, version, strike)`; `read(folder)` returns what the next stage would read."""

    write: Callable[[Path, int, Strike], None]
    read: Callable[[Path], Any]
    without: tuple[str, ...] = ()  # faults that do not apply, by their first word, e.g. it renames nothing
    cleans: bool = False  # the next start removes what a killed process left
    appends: bool = False  # data written before an error may remain
    several: bool = False  # writes several files: only a later one may fail


def whole(folder: Path, version: int) -> bytes:
    return str(version).encode() * 5000


def of_files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted((folder / "out").rglob("*")) if path.is_file()}


def atomic(folder: Path, version: int, strike: Strike) -> None:
    strike()
    write_atomic(folder / "out/file", whole(folder, version))


def verified(folder: Path, version: int, strike: Strike) -> None:
    strike()
    write_atomic(folder / "out/file", whole(folder, version), verify=True)


def a_folder(folder: Path, version: int, strike: Strike) -> None:
    strike()
    with replacing(folder / "out") as new:
        (new / "file").write_bytes(whole(folder, version))


def downloaded(folder: Path, version: int, strike: Strike) -> None:
    mirror = folder / "mirror"
    mirror.mkdir(exist_ok=True)
    (mirror / "file").write_bytes(whole(folder, version))
    strike()
    with replacing(folder / "out") as new:
        file = SourceFile("file", f"sha256:{sha256(whole(folder, version))}")
        fetch(file, new, [str(mirror)], deadline_s=10, retries=0)


def manifest(folder: Path, version: int, strike: Strike) -> None:
    source = origin("digits")
    assert source.installed
    with replacing(folder / "out") as new:
        (new / "digits.csv.gz").write_bytes((source.installed / "digits.csv.gz").read_bytes())
        strike()
        write_manifest(new, "digits", source)


def described(folder: Path, version: int, strike: Strike) -> None:
    photos = write_files(folder / "photos", pets(1 + version))
    with replacing(folder / "out") as new:
        strike()
        write_images(new, Folder(photos), download_params(photos))


def split(folder: Path, version: int, strike: Strike) -> None:
    digits = digits_split(10, start=version)
    strike()
    write_split(folder / "out", "test", Split(digits.images, digits.labels))


def split_in_pieces(folder: Path, version: int, strike: Strike) -> None:
    images, labels = np.full((40, 1, 32, 32), version, np.uint8), np.arange(40) % 2
    with replacing(folder / "out") as new:
        strike()
        writer = SplitWriter(new, "train", labels, np.zeros((40, 32), np.uint8), images.shape[1:])
        for start in (0, 15, 30):
            writer.append(images[start : start + 15])
        writer.close()


def no_pretrained_weights(folder: Path, version: int, strike: Strike) -> None:
    with replacing(folder / "out") as new:
        strike()
        write_none(new, f"network{version}")


def data_meta(folder: Path, version: int, strike: Strike) -> None:
    meta = write_digits(folder / "out", test=10 + version) if version == 1 else read_meta(folder / "out")
    strike()
    write_meta(folder / "out", meta.model_copy(update={"citation": str(version)}))


def model(folder: Path, version: int, strike: Strike) -> None:
    meta = write_digits(folder / "data")
    classifiers = {seed: build(meta, seed) for seed in (version, version + 1)}
    strike()
    write_model(folder / "out", classifiers, version, meta)


def read_the_model(folder: Path) -> Any:
    return read_model_meta(folder / "out"), of_files(folder)


def history(folder: Path, version: int, strike: Strike) -> None:
    strike()
    write_history(folder / "out/history.csv", [ROW] * 100 * version)


def training_report(folder: Path, version: int, strike: Strike) -> None:
    strike()
    write_training(folder / "out", {1: [ROW] * version, 2: [ROW]}, 1, COSTS)


def read_the_report(folder: Path) -> Any:
    verify_training(folder / "out")
    return of_files(folder)


def evaluation(folder: Path, version: int, strike: Strike) -> None:
    """Its JSON, CSV, Parquet and PNG files, written with write_atomic to a new folder."""
    evaluation = evaluation_of(noisy_predictions(20, list("0123456789"), seed=version))
    strike()
    write_evaluation(folder / "out", evaluation, evaluate_params(misclassified=1))


def training(folder: Path, version: int, strike: Strike) -> None:
    """A training that is killed after its `version`-th checkpoint."""
    with suppress(KeyboardInterrupt), checkpointed("0" * 64, 1) as work:
        checkpoints = work.of_seed(0)
        assert checkpoints
        found = checkpoints.load(*PLAN)
        done = found.position.step if found else 0
        strike()
        for step in range(done + 1, version + 1):
            checkpoints.add(replace(ROW, step=step))
            checkpoints.save(step, 0, {"weights/a": torch.full((5000,), step), "sums/found_inf": torch.zeros(())})
            checkpoints.wait()
        raise KeyboardInterrupt


def read_the_checkpoint(folder: Path) -> Any:
    (place,) = (folder / ".pipeline/checkpoints").glob("*/seed-0")
    found = Checkpoints(place, 1).load(*PLAN)
    return found and (found.position, found.rows, found.tensors["weights/a"].tolist())


def run_key(folder: Path, version: int, strike: Strike) -> None:
    """The first file of a checkpoint's folder."""
    if version == 2:
        strike()
        with suppress(KeyboardInterrupt), checkpointed("1" * 64, 1):
            raise KeyboardInterrupt


def owner(folder: Path, version: int, strike: Strike) -> None:
    """The owner's mark, in a folder that is kept."""
    strike()
    assert claim(folder / "out") is not None


def recipe_values(folder: Path, version: int, strike: Strike) -> None:
    os.chdir(folder)
    if version == 1:
        shutil.copy(ROOT / "params.yaml", "params.yaml")
        shutil.copytree(ROOT / "recipes", "recipes", dirs_exist_ok=True)
    strike()
    with redirect_stdout(io.StringIO()):
        recipe.main([("tutorial-mnist", "mnist")[version - 1]])


def append(folder: Path, version: int, strike: Strike) -> None:
    events = journal.Journal(folder / "out")
    events.folder.mkdir(exist_ok=True)
    strike()
    events.append("end", version=version, text="x" * 5000)


def read_the_events(folder: Path) -> Any:
    return [event["version"] for event in journal.Journal(folder / "out").read()[0]]


def keep(folder: Path, version: int, strike: Strike, text: bool) -> None:
    events, source = journal.Journal(folder / "out"), folder / "source"
    source.write_bytes(whole(folder, version))
    events.folder.mkdir(exist_ok=True)
    strike()
    path = f"code/file-{version}"
    events.keep_text(whole(folder, version), path) if text else events.keep(source, path)
    events.append("files", path="code", version=version)


def new_journal(folder: Path, version: int, strike: Strike) -> None:
    strike()
    journal.new_journal("train")


def address(folder: Path, version: int, strike: Strike) -> None:
    """The note of where a store's home is; another store each time."""
    from classifier.tracking.internals import note_home  # mlflow takes seconds

    (folder / "out").mkdir(parents=True, exist_ok=True)
    strike()
    note_home(folder / f"out/{version}.db")


def seeds_worker(folder: Path, version: int, strike: Strike) -> None:
    """A worker process that trains some of several seeds; it reports errors to its parent as JSON."""
    write_digits(folder / "data")
    (folder / "weights").mkdir(exist_ok=True)
    params = train_params(seed=version).model_dump()
    job = {"data": str(folder / "data"), "folder": str(folder / "weights"), "seeds": [0], "params": params, "work": ""}
    said = io.StringIO()
    strike()
    with redirect_stdout(said):
        seeds._work([json.dumps(job)])
    for line in said.getvalue().splitlines():
        if "error" in (message := json.loads(line)):
            raise ValueError(message["error"])


SITES = {
    "file": Site(atomic, of_files),
    "file, read back": Site(verified, of_files),
    "folder": Site(a_folder, of_files, ("flush",), cleans=True),
    "download's file": Site(downloaded, of_files, cleans=True),
    "download's manifest": Site(manifest, lambda folder: read_raw(folder / "out"), cleans=True),
    "download's images": Site(described, lambda folder: read_raw(folder / "out"), cleans=True, several=True),
    "normalize's split": Site(split, of_files),
    "normalize's split of a folder": Site(split_in_pieces, of_files, cleans=True),
    "pretrained's manifest": Site(no_pretrained_weights, of_files, cleans=True),
    "normalize's meta": Site(data_meta, lambda folder: read_meta(folder / "out")),
    "train's model": Site(model, read_the_model, cleans=True, several=True),
    "train's history": Site(history, of_files),
    "train's report": Site(training_report, read_the_report, cleans=True, several=True),
    "evaluate's report": Site(evaluation, of_files, cleans=True, several=True),
    "checkpoint": Site(training, read_the_checkpoint, cleans=True),
    "checkpoint's run key": Site(run_key, lambda folder: None, cleans=True),
    "journal's event": Site(append, read_the_events, ("rename",), cleans=True, appends=True),
    "journal's copy": Site(lambda *arguments: keep(*arguments, text=False), read_the_events, ("rename", "flush")),
    "journal's text": Site(lambda *arguments: keep(*arguments, text=True), read_the_events, ("rename", "flush")),
    "journal's folder": Site(new_journal, lambda folder: None, ("rename", "flush", "write", "short", "full")),
    # Its mark overwrites a released one in place; a truncated mark only holds less information.
    "owner's mark": Site(owner, lambda folder: None, ("rename", "flush", "short", "full"), cleans=True),
    "recipe's values": Site(recipe_values, lambda folder: (folder / "params.yaml").read_bytes()),
    "store's address": Site(address, lambda folder: None),
    "weights of a worker": Site(seeds_worker, lambda folder: None, ("rename",)),
}
