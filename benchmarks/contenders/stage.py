"""A stage as a user runs it, its time split up from outside: the stage's own code is the one that dvc.yaml runs.

    python -m benchmarks.contenders.stage STAGE ARGUMENTS...

Says, in seconds: each part of `PARTS` without what it calls of the others, `mlflow`, `other`, and `main_at`, the
system's monotonic clock when everything was imported.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from benchmarks.contenders.stopwatch import say

PARTS = {
    "reading": [
        "classifier.raw.read_raw",
        "classifier.dataset.read_meta",
        "classifier.dataset.read_split",
        "classifier.model_dir.read_model_meta",
        "classifier.model_dir.read_model",
    ],
    "work": [
        "classifier.transfer.fetch",
        "classifier.formats.parse",
        "classifier.normalization.make_splits",
        "classifier.normalization.statistics",
        "classifier.training.fit",
        "classifier.inference.predict",
    ],
    "mlflow": ["classifier.tracking.training_run", "classifier.tracking.evaluation_run"],  # and what Run logs
    "writing": [
        "classifier.files.write_atomic",
        "classifier.files.write_json",
        "classifier.raw.write_manifest",
        "classifier.dataset.write_split",
        "classifier.model_dir.write_model",
        "classifier.history.write_history",
        "classifier.reports.write_evaluation",
    ],
}


class Clock:
    """Every moment belongs to one part: the innermost that has begun and not ended."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.current, self.since = "other", time.monotonic()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
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

    def timed(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        """`function`, counted as `part`; of a context manager entering and leaving count, and what it holds not."""

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


def run(name: str, arguments: list[str], fit: Callable[[Clock], Callable[..., Any]] | None = None) -> dict[str, Any]:
    """Run the stage in this process; `fit` makes what shall be called in place of the engine's."""
    stage = importlib.import_module(f"stages.{name}")
    clock = Clock()
    main_at = clock.since
    if fit:
        replace("classifier.training.fit", lambda _: fit(clock))
    for part, addresses in PARTS.items():
        for address in addresses:
            replace(address, lambda function, part=part: clock.timed(function, part))
    if tracking := sys.modules.get("classifier.tracking"):
        for name in [name for name in vars(tracking.Run) if name.startswith("log_")]:
            setattr(tracking.Run, name, clock.timed(getattr(tracking.Run, name), "mlflow"))
    with clock.part("other"):
        stage.main(arguments)
    return {"main_at": main_at, **clock.seconds}


def replace(address: str, change: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Put `change(function)` wherever our modules have bound the function; nowhere where its module is not loaded."""
    home, _, name = address.rpartition(".")
    if home not in sys.modules:
        return
    function = getattr(sys.modules[home], name)
    changed = change(function)
    for module in [module for name, module in sys.modules.items() if name.startswith(("stages.", "classifier."))]:
        if getattr(module, name, None) is function:
            setattr(module, name, changed)


def main() -> None:
    say(**run(sys.argv[1], sys.argv[2:]))


if __name__ == "__main__":
    main()
