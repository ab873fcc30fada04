"""Run a stage exactly as dvc.yaml does and split its time into parts, without changing its code.

    python -m benchmarks.contenders.stage STAGE ARGUMENTS...

Prints the seconds of the stage's thread in `imports`, in each part of `PARTS` (excluding nested calls of other parts)
and in `other`, and `started_at`, the monotonic clock at the start.
"""

from __future__ import annotations

import importlib
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from benchmarks.contenders.stopwatch import say

Function = Callable[..., Any]
PARTS = {
    "reading": [
        "classifier.sources.raw:read_raw",
        "classifier.data.dataset:read_meta",
        "classifier.data.dataset:read_split",
        "classifier.training.history:read_history",
        "classifier.networks.model_dir:read_model_meta",
        "classifier.networks.model_dir:read_model",
        "classifier.networks.model_dir:read_models",
    ],
    "work": [
        "classifier.sources.transfer:fetch",
        "classifier.data.formats:parse",
        "classifier.data.normalization:make_splits",
        "classifier.data.normalization:statistics",
        "classifier.training.loop:train_one",
        "classifier.training.seeds:train_seeds",
        "classifier.networks.inference:predict",
        "classifier.evaluation.inference:Inference.predictions",
        "classifier.evaluation.inference:Inference.right",
    ],
    "checkpoints": [
        "classifier.training.checkpoint:fingerprint_of",
        "classifier.training.checkpoint:checkpointed",
        "classifier.training.engine:Engine.state",
        "classifier.training.checkpoint:Checkpoints.load",
        "classifier.training.checkpoint:Checkpoints.add",
        "classifier.training.checkpoint:Checkpoints.save",
        "classifier.training.checkpoint:Checkpoints.wait",
    ],
    "journal": [  # recording data for MLflow; also starts the recorder
        "classifier.recording.run:recording",
        "classifier.recording.run:restore_training",
        "classifier.recording.run:Recording.begin",
        "classifier.recording.run:Recording.log_data",
        "classifier.recording.run:Recording.log_row",
        "classifier.recording.run:Recording.log_training",
        "classifier.recording.run:Recording.log_evaluation",
        "classifier.recording.journal:Journal.append",
        "classifier.recording.journal:Journal.keep",
        "classifier.recording.journal:Journal.keep_text",
    ],
    "waiting": [  # for the recorder
        "classifier.recording.run:Recording.settle",
        "classifier.recording.run:Recording.end",
    ],
    "writing": [
        "classifier.project.files:replacing",
        "classifier.project.files:write_atomic",
        "classifier.project.files:write_json",
        "classifier.sources.raw:write_manifest",
        "classifier.data.dataset:write_split",
        "classifier.data.dataset:write_meta",
        "classifier.networks.model_dir:write_model",
        "classifier.training.report:write_training",
        "classifier.evaluation.report:write_evaluation",
    ],
}


class Clock:
    """Assigns the time of one thread to parts. Time in nested parts counts for the innermost one."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.thread = threading.get_ident()
        self.current, self.started = "other", time.monotonic()
        self.since = self.started

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        if threading.get_ident() != self.thread:
            yield
            return
        outer = self._switch(name)
        try:
            yield
        finally:
            self._switch(outer)

    def _switch(self, name: str) -> str:
        now = time.monotonic()
        self.seconds[self.current] += now - self.since
        before, self.current, self.since = self.current, name, now
        return before

    def timed(self, function: Function, part: str) -> Function:
        """Wrap `function` so that its time counts as `part`. For a context manager, only entering and leaving count."""

        def call(*arguments: Any, **options: Any) -> Any:
            with self.part(part):
                result = function(*arguments, **options)
            return TimedContext(self, result, part) if isinstance(result, AbstractContextManager) else result

        return call


class TimedContext(AbstractContextManager[Any]):
    def __init__(self, clock: Clock, inner: AbstractContextManager[Any], part: str) -> None:
        self.clock, self.inner, self.part = clock, inner, part

    def __enter__(self) -> Any:
        with self.clock.part(self.part):
            return self.inner.__enter__()

    def __exit__(self, *error: Any) -> bool | None:
        with self.clock.part(self.part):
            return self.inner.__exit__(*error)


class Instruments:
    """A meta path finder that times imports and replaces functions as soon as their module is imported.

    It imports nothing itself, because stages delay slow imports until the recorder has been started.
    """

    def __init__(self, clock: Clock, changes: Mapping[str, Callable[[Function], Function]]) -> None:
        """`changes`: `module:name` or `module:Class.name` -> function that returns the replacement."""
        self.clock, self.changes = clock, changes
        loaded = {address.partition(":")[0] for address in changes} & sys.modules.keys()
        assert not loaded, f"{', '.join(sorted(loaded))} should not have been imported yet"

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target)
        if spec and spec.loader:
            execute = spec.loader.exec_module

            def timed_execute(module: ModuleType) -> None:
                with self.clock.part("imports"):
                    execute(module)
                self._change(module)

            spec.loader.exec_module = timed_execute
        return spec

    def _change(self, module: ModuleType) -> None:
        for address, change in self.changes.items():
            home, _, path = address.partition(":")
            if home == module.__name__:
                owner, _, name = path.rpartition(".")
                place = getattr(module, owner) if owner else module
                setattr(place, name, change(getattr(place, name)))


def run(name: str, arguments: list[str], fit: Callable[[Clock, Function], Function] | None = None) -> dict[str, Any]:
    """Run the stage in this process; `fit` returns the replacement of the training loop's `fit`."""
    clock = Clock()
    changes = {
        address: lambda function, part=part: clock.timed(function, part)
        for part, addresses in PARTS.items()
        for address in addresses
    }
    if fit:
        changes["classifier.training.loop:fit"] = lambda function: fit(clock, function)
    sys.meta_path.insert(0, Instruments(clock, changes))
    stage = importlib.import_module(f"stages.{name}")
    cli = importlib.import_module("classifier.project.cli")
    sys.argv = [f"stages/{name}.py", *arguments]
    cli.run_stage(stage.main)
    with clock.part("exit"):
        return {"started_at": clock.started, **clock.seconds}


def main() -> None:
    say(**run(sys.argv[1], sys.argv[2:]))


if __name__ == "__main__":
    main()
