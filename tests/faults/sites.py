"""Every place where the pipeline writes, with every fault of a disk; cases are forked from one warm process.

    python -m tests.faults.sites CASES    (JSON: [[site, fault], ...]; prints a line of JSON per case)

A case runs on its own small file system. The site writes version 1. The fault occurs while another process writes
version 2; that process must exit with one line and status 1 (or be killed), and version 1 must still be readable. Then
the site writes version 2 without a fault, and the files must equal those of a disk that never failed, without
temporary files.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, replace
from itertools import count
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
from classifier.project.cli import run
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
from tests.faults.kernel import CREATING, RENAMING, WRITING, ask, can_refuse, refuse, small_disk
from tests.photos import download_params, pets, write_files
from tests.samples import COSTS, ROOT, digits_split, train_params, write_digits

DISK = 16 << 20  # bytes
Strike = Callable[[], None]  # called where the fault starts
ROW = HistoryRow(10, 1, 320, 0.1, 2.3, 2.2, 2.1, 0.5)
LATER = {"fsync": 3, "rename": 2}  # the call of the second file: flushes of files and of their folder alternate
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
    write_evaluation(folder / "out", evaluation, evaluate_params(mistakes=1))


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


def fill(folder: Path) -> None:
    """Fill the disk with an extra file, which is removed before the next start."""
    for size in (1 << 16, 1):
        with (folder / "filler").open("ab", buffering=0) as file, suppress(OSError):
            while file.write(bytes(size)):
                pass


def shorten(folder: Path) -> None:
    """The next write beyond the largest file's size is written in part, and the rest is refused."""
    appended = folder / "out/events.jsonl"
    limit = appended.stat().st_size + 10 if appended.exists() and not (folder / "source").exists() else 10
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def full(folder: Path) -> None:
    """A full disk: `fill` has filled it, or the kernel reports ENOSPC if a small disk could not be mounted."""
    if not (folder / "filler").exists():
        refuse(*WRITING, error=errno.ENOSPC)


def refuse_later(call: str) -> None:
    """EIO for a single call, after a first file was written completely."""
    numbers = count(1)
    ask(lambda name, paths: errno.EIO if name.startswith(call) and next(numbers) == LATER[call] else 0)


FAULTS: dict[str, Callable[[Path], None]] = {
    "full disk": full,
    "short write": shorten,
    "write: EIO": lambda folder: refuse(*WRITING, error=errno.EIO),
    "flush: EIO": lambda folder: refuse("fsync", error=errno.EIO),
    "rename: EIO": lambda folder: refuse(*RENAMING, error=errno.EIO),
    "create: EACCES": lambda folder: refuse(*CREATING, error=errno.EACCES),
    "write: killed": lambda folder: refuse(*WRITING, error=None),
    "flush: killed": lambda folder: refuse("fsync", error=None),
    "rename: killed": lambda folder: refuse(*RENAMING, error=None),
    "later flush: EIO": lambda folder: refuse_later("fsync"),
    "later rename: EIO": lambda folder: refuse_later("rename"),
}
# Functions that write -> the site that covers them. A test searches the code for missing ones.
MET = {
    "classifier.training.checkpoint:Checkpoints._write": "checkpoint",
    "classifier.training.checkpoint:checkpointed": "checkpoint's run key",
    "classifier.data.dataset:write_meta": "normalize's meta",
    "classifier.data.dataset:write_split": "normalize's split",
    "classifier.data.writing:SplitWriter._open": "normalize's split of a folder",
    "classifier.data.writing:SplitWriter.close": "normalize's split of a folder",
    "classifier.networks.manifest:write_none": "pretrained's manifest",
    "classifier.project.files:_swap": "folder",
    "classifier.project.files:publish": "file",
    "classifier.project.files:replacing": "folder",
    "classifier.project.files:_write_atomic": "file",
    "classifier.project.files:write_json": "evaluate's report",
    "classifier.training.history:write_history": "train's history",
    "classifier.recording.journal:Journal.append": "journal's event",
    "classifier.recording.journal:Journal.keep": "journal's copy",
    "classifier.recording.journal:Journal.keep_text": "journal's text",
    "classifier.networks.model_dir:write_model": "train's model",
    "classifier.project.ownership:_claim": "owner's mark",
    "classifier.sources.raw:write_manifest": "download's manifest",
    "classifier.training.seeds:_work": "weights of a worker",
    "classifier.evaluation.report:_write_csv": "evaluate's report",
    "classifier.evaluation.report:write_evaluation": "evaluate's report",
    "classifier.project.checksummed:write_checksummed": "train's model",
    "classifier.tracking.internals:note_home": "store's address",
    "classifier.tracking.internals:relocate": "store's address",
    "classifier.training.report:write_training": "train's report",
    "classifier.sources.transfer:_published": "download's file",
    "classifier.sources.images:write_images": "download's images",
    "classifier.commands.recipe:recipe": "recipe's values",
}
# Functions that write and are not covered by a site -> the reason.
NOT_MET = {
    "classifier.workers:Crew._fork": "a traceback, on standard error",
    "classifier.repository.clones:Clone.reset": "a sweep's own clone, which is made anew",
    "classifier.repository.clones:Clone.start": "a log, written by the process that is started",
    "classifier.repository.worktree:check_out": "a checkout that is thrown away or made anew",
    "classifier.repository.worktree:_link": "a checkout that is thrown away or made anew",
    "classifier.sweeps.record:Record.begin": "write_atomic of one file",
    "classifier.repository.repair:_repair_lockfile": "write_atomic of one file",
    "classifier.project.ownership:remove": "renames what goes away",
    "classifier.tracking.recorder:_give_way": "a setting of the kernel's",
    "classifier.tracking.recorder:main": "a mark for training, whose errors are passed over",
    "classifier.runs.reproduction:Reproduction._bring_by_hash": "a clone that is thrown away",
    "classifier.runs.reproduction:reproduce": "a clone that is thrown away",
    "classifier.data.collection:Collection.write_table": "write_atomic of one file, in a folder that is replaced",
    "classifier.data.report:Report.write": "write_atomic of each file, in a folder that is replaced",
    "classifier.data.report:write_csv": "write_atomic of one file, in a folder that is replaced",
    "classifier.networks.pretrained:_write": "write_atomic of each file, in a folder that is replaced",
    "classifier.data.decoding:Decoder.__call__": "a chunk, made anew unless it has the SHA-256 of its name",
    "classifier.commands.export:export": "write_atomic of one file for people",
    "classifier.commands.predict:_write_csv": "write_atomic of one file for people",
    "classifier.commands.sweep:draw": "write_atomic of one file for people",
    "classifier.recording.pages:note_ui": "write_atomic of one file, whose loss only hides an address",
    "classifier.serving.fetch:bring": "write_atomic of one file, which is made anew",
    "classifier.serving.stored:attach": "a temporary file",
    "classifier.serving.stored:downloaded": "a folder that is made anew",
    "classifier.commands.compare:write": "write_atomic of files for people",
    "classifier.commands.leaderboard:leaderboard": "write_atomic of one file for people",
}


def all_cases() -> list[tuple[str, str]]:
    """Every site with every fault that applies to it on this machine."""
    found = []
    for name, site in SITES.items():
        for fault in FAULTS:
            reached = fault.split()[0].rstrip(":") not in site.without and (site.several or "later" not in fault)
            if reached and (site.cleans or "killed" not in fault) and (can_refuse() or fault == "short write"):
                found.append((name, fault))
    return found


def in_a_process(act: Callable[[], None]) -> tuple[int, str]:
    """Run `act` like a command in a child process; returns its exit status (negative: a signal) and standard error."""
    reading, writing = os.pipe()
    if not (process := os.fork()):
        os.close(reading)
        os.dup2(writing, 2)
        os.close(writing)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        status = 99
        try:
            run(lambda arguments: act(), "stage")
            status = 0
        except SystemExit as error:
            status = int(error.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, errors="replace") as file:
        said = file.read()
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), said


def names(folder: Path) -> list[str]:
    """File names, without locks and without names that contain a time, a process id or a hash."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.name not in ("filler", "lock"))
    return sorted(re.sub(r"[0-9a-f]{16,}|\d+", "N", str(path)) for path in paths)


def check(name: str, fault: str, place: Path) -> None:
    """Run one case in this process, which has its own small disk. Raises AssertionError."""
    site = SITES[name]
    mounted = True
    try:
        small_disk(str(place), DISK)
    except OSError:
        mounted = False
    clean, folder = place / "clean", place / "folder"

    def write(folder: Path, version: int, fault: str | None = None) -> tuple[int, str]:
        os.environ["DVC_ROOT"] = str(folder)
        folder.mkdir(exist_ok=True)
        strike = (lambda: FAULTS[fault](folder)) if fault else (lambda: None)
        return in_a_process(lambda: site.write(folder, version, strike))

    for version in (1, 2):
        assert (ended := write(clean, version)) == (0, ""), f"version {version}: {ended}"
    assert (ended := write(folder, 1)) == (0, ""), f"version 1: {ended}"
    before = site.read(folder)
    if fault == "full disk" and mounted:
        fill(folder)
    status, said = write(folder, 2, fault)
    (folder / "filler").unlink(missing_ok=True)
    if "killed" in fault:
        assert status == -signal.SIGSYS, f"status {status}: {said}"
    else:
        assert status == 1, f"status {status}: {said}"
        assert said.count("\n") == 1, f"not one line: {said}"
        if fault == "full disk":
            assert re.search(r"/\S+ cannot be written: the disk is full \(.*\d bytes free\)", said), said
    assert site.appends or site.read(folder) == before, "version 1 is no longer what is read"
    assert (ended := write(folder, 2)) == (0, ""), f"the next start: {ended}"
    now, then = names(folder), names(clean)
    assert now == then, f"{sorted(set(now) ^ set(then))} is left over"
    assert site.appends or site.read(folder) == of_clean(site, clean, folder), "the next start wrote different content"


def of_clean(site: Site, clean: Path, folder: Path) -> Any:
    """Read the undisturbed folder under the other's name."""
    folder.rename(folder.with_name("done"))
    clean.rename(folder)
    found = site.read(folder)
    folder.rename(clean)
    folder.with_name("done").rename(folder)
    return found


def main(cases: list[tuple[str, str]]) -> None:
    sys.argv[0] = "stage"
    for name, fault in cases:
        with tempfile.TemporaryDirectory() as place:
            status, said = in_a_process(lambda: check(name, fault, Path(place)))  # noqa: B023
        print(json.dumps({"site": name, "fault": fault, "problem": said.strip()[-1500:] if status else ""}), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
