"""Several seeds of one training. On a CPU, each has the bits of the seed trained alone.

There, one process per core trains one seed after another, because two processes of one thread train two such small
networks faster than one process of two threads. The processes share the data in memory. On CUDA the seeds are one stack
of models (`classifier.training.stack`), and differ from the seed trained alone by float32's rounding.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue

import torch
from safetensors.torch import load_file

from classifier.data.dataset import read_meta, read_split
from classifier.device import keep_freed_memory
from classifier.errors import UserError, lacks_memory
from classifier.networks.model import Classifier
from classifier.networks.model_dir import load_weights, weights_bytes
from classifier.networks.pretrained import Initial, initial
from classifier.params import TrainParams
from classifier.project.cli import run
from classifier.project.files import write_atomic
from classifier.project.processes import world
from classifier.training.checkpoint import NO_WORK, Work
from classifier.training.history import HistoryRow, kept_row
from classifier.training.loop import Report, Trained, train_one
from classifier.training.parts import processes_of
from classifier.training.stack import fit_together, stackable

TOGETHER = 64  # models in one stack, so that any number of seeds fits into a GPU's memory


def seeds_of(params: TrainParams) -> list[int]:
    """`train.seed` and the seeds that follow it."""
    return list(range(params.seed, params.seed + params.seeds))


def side_by_side(params: TrainParams, device: torch.device) -> int:
    """How many seeds are trained at the same time, at most."""
    if world() > 1:  # all processes share each
        return 1
    return {"cpu": processes_of(params), "cuda": TOGETHER if stackable(params) else 1}.get(device.type, 1)


def train_seeds(
    data: Path,
    params: TrainParams,
    device: torch.device,
    report: Report,
    work: Work = NO_WORK,
    pretrained: Path | None = None,
) -> dict[int, Trained]:
    """Train all seeds on `data/normalized`; each resumes from its last checkpoint in `work` (`train_one`)."""
    seeds = seeds_of(params)
    workers = min(len(seeds), side_by_side(params, device))
    if workers > 1 and device.type == "cuda":
        return train_in_stacks(data, seeds, params, device, report, work, pretrained)
    if workers == 1:
        trained = {}
        for seed in seeds:
            with naming(seed) if len(seeds) > 1 else nullcontext():
                trained[seed] = train_one(data, seed, params, device, report, work, pretrained)
        return trained
    return _train_in_processes(data, seeds, params, workers, report, work, pretrained)


@contextmanager
def naming(seed: int) -> Iterator[None]:
    """Begin the user's errors with the seed."""
    try:
        yield
    except UserError as error:
        raise type(error)(f"seed {seed}: {error}") from None


def seconds_of(trained: Mapping[int, Trained], params: TrainParams, device: torch.device) -> float:
    """Training time of all seeds together, of which several are trained at the same time."""
    each = [one.rows[-1].seconds or 0.0 for one in trained.values()]
    together = side_by_side(params, device)
    if device.type == "cuda":
        return sum(each[::together])  # the models of a stack end together
    return max(sum(each[number::together]) for number in range(min(together, len(each))))


def train_in_stacks(
    data: Path,
    seeds: Sequence[int],
    params: TrainParams,
    device: torch.device,
    report: Report,
    work: Work,
    pretrained: Path | None = None,
) -> dict[int, Trained]:
    """Train stacks of up to TOGETHER models. A stack's checkpoints are in the folder of its first seed."""
    meta = read_meta(data)
    train, validation = read_split(data, "train", meta), read_split(data, "validation", meta)
    begin = initial(meta, params.network, params.pretrained, pretrained)
    trained = {seed: Trained(begin.classifier(seed), []) for seed in seeds}

    def keep(seed: int, row: HistoryRow) -> None:
        trained[seed].rows.append(row)
        report(seed, row)

    for first in range(0, len(seeds), TOGETHER):
        stack = {seed: trained[seed].classifier for seed in seeds[first : first + TOGETHER]}
        fit_together(stack, train, validation, params, device, keep, work.of_seed(seeds[first]))
    return trained


def _train_in_processes(
    data: Path,
    seeds: Sequence[int],
    params: TrainParams,
    workers: int,
    report: Report,
    work: Work,
    pretrained: Path | None,
) -> dict[int, Trained]:
    """Each process trains every `workers`-th seed. Their rows are reported here, one after the other."""
    reports: SimpleQueue[tuple[int, HistoryRow] | Exception | None] = SimpleQueue()
    rows: dict[int, list[HistoryRow]] = {seed: [] for seed in seeds}
    with (
        tempfile.TemporaryDirectory() as folder,
        ThreadPoolExecutor(workers) as pool,  # left after the processes have ended, so that no thread is waited for
        _processes(data, seeds, params, workers, Path(folder), work, pretrained) as processes,
    ):
        for process in processes:
            pool.submit(_follow, process, reports)
        working = workers
        while working:
            reported = reports.get()
            if reported is None:
                working -= 1
            elif isinstance(reported, Exception):
                raise reported  # which ends the other processes
            else:
                rows[reported[0]].append(reported[1])
                report(*reported)
        begin = initial(read_meta(data), params.network, params.pretrained, pretrained)
        return {seed: Trained(_read(begin, seed, Path(folder)), rows[seed]) for seed in seeds}


@contextmanager
def _processes(
    data: Path,
    seeds: Sequence[int],
    params: TrainParams,
    workers: int,
    folder: Path,
    work: Work,
    pretrained: Path | None,
) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes of `python -m classifier.training.seeds`, one core each. None of them outlives this block."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // workers))}
    params = params.model_copy(update={"processes": max(1, processes_of(params) // workers)})
    processes = []
    for number in range(workers):
        job = {
            "data": str(data),
            "folder": str(folder),
            "seeds": seeds[number::workers],
            "params": params.model_dump(),
            "work": str(work.folder) if work.folder else None,
            "pretrained": str(pretrained) if pretrained else None,
        }
        command = [sys.executable, "-m", "classifier.training.seeds", json.dumps(job)]
        process = subprocess.Popen(  # noqa: S603, arguments of our own
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        processes.append(process)
    try:
        yield processes
    finally:
        for process in processes:
            assert process.stdin
            process.stdin.close()
            process.kill()
            process.wait()


def _follow(process: subprocess.Popen[str], reports: SimpleQueue[tuple[int, HistoryRow] | Exception | None]) -> None:
    """Pass on the rows of a process; then None when it has ended, or the error that ended it."""
    end: Exception | None = UserError("a training process wrote an invalid row")
    try:
        assert process.stdout
        with process.stdout as lines:
            for line in lines:
                message = json.loads(line)
                if "memory" in message:
                    raise MemoryError(message["memory"])
                if "error" in message:
                    raise UserError(message["error"])
                reports.put((message["seed"], HistoryRow(**message["row"])))
        end = None
        if process.wait():
            raise UserError(f"a training process exited with {process.returncode}; -9: killed, or out of memory")
    except (UserError, MemoryError) as error:
        end = error
    except ValueError:  # JSON that is cut off
        end = UserError("a training process exited in the middle of a line: killed, or out of memory")
    finally:
        reports.put(end)


def _read(begin: Initial, seed: int, folder: Path) -> Classifier:
    classifier = begin.classifier(seed)
    load_weights(classifier.network, load_file(folder / f"{seed}.safetensors"))
    return classifier


def _work(arguments: list[str]) -> None:
    """Train a process's seeds: rows go to standard output as lines of JSON, weights into the folder."""
    job = json.loads(arguments[0])
    params = TrainParams.model_validate(job["params"])
    pretrained = Path(job["pretrained"]) if job["pretrained"] else None
    work = Work("", Path(job["work"]), params.checkpoint_every) if job["work"] else NO_WORK
    keep_freed_memory()

    def say(seed: int, row: HistoryRow) -> None:
        print(json.dumps({"seed": seed, "row": asdict(row)}), flush=True)

    for seed in job["seeds"]:
        try:
            device, data = torch.device("cpu"), Path(job["data"])
            trained = train_one(data, seed, params, device, say, work, pretrained)
            write_atomic(Path(job["folder"]) / f"{seed}.safetensors", weights_bytes(trained.classifier))
        except Exception as error:
            kind = "memory" if lacks_memory(error) else "error"
            if kind == "error" and not isinstance(error, UserError | OSError):
                raise
            print(json.dumps({kind: f"seed {seed}: {error}"}), flush=True)
            return


def _end_with_the_stage() -> None:
    """Exit when standard input is closed, as it is when the stage ends, in whatever way."""
    sys.stdin.read()
    os._exit(1)


def median_seed(trained: Mapping[int, Trained], keep: str = "last") -> int:
    """The seed whose validation accuracy is the median (the lower one of two), ties by loss, then by seed.

    Without a validation split the training loss decides.
    """

    def rank(seed: int) -> tuple[float, float, int]:
        last = kept_row(trained[seed].rows, keep)
        assert last.train_loss is not None
        if last.validation_accuracy is None or last.validation_loss is None:
            return (0.0, -last.train_loss, seed)
        return (last.validation_accuracy, -last.validation_loss, seed)

    return sorted(trained, key=rank)[(len(trained) - 1) // 2]


if __name__ == "__main__":
    threading.Thread(target=_end_with_the_stage, daemon=True).start()
    run(_work, "train")
