"""How long training took, without the time for which one that was killed lay dead.

Outputs hold no times: they go to MLflow as `train/seconds`. Until training has ended `seconds.json` beside its
checkpoints keeps what all attempts took so far: `{"<seed>": seconds, ..., "total": seconds}`.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path

from pydantic import TypeAdapter

from classifier.training.history import Row

KEPT_EVERY_S = 1.0  # what a kill may lose
TOTAL = "total"


class Stopwatch:
    """Of one attempt; it starts when it is made."""

    def __init__(self, folder: Path | None, epochs: int, together: int) -> None:
        """`folder`: that of the checkpoints, None without any. `together`: seeds that are trained side by side."""
        self.path = folder / "seconds.json" if folder else None
        self.epochs = epochs
        self.before: dict[str, float] = {}  # by seed, as text, and of all together
        if self.path:
            with suppress(OSError, ValueError):  # none yet; cut off by a power cut
                self.before = TypeAdapter(dict[str, float]).validate_json(self.path.read_bytes(), strict=True)
        self.start = self.kept = time.monotonic()
        self.starts: dict[int, float] = {}
        self.free = [self.start] * together  # when the places were, or became, free
        self.seeds: dict[int, float] = {}

    @property
    def total(self) -> float:
        """Seconds of all seeds together, as they passed on the wall."""
        return self.before.get(TOTAL, 0.0) + time.monotonic() - self.start

    def seconds(self, seed: int, row: Row) -> float:
        """Seconds of this seed up to `row`, which it has just reported.

        Seeds are trained side by side from the start, or as one takes the place of another that has ended.
        """
        now = time.monotonic()
        if seed not in self.starts:
            self.starts[seed] = self.free.pop(0) if self.free else self.start
        self.seeds[seed] = self.before.get(str(seed), 0.0) + now - self.starts[seed]
        ended = row.epoch == self.epochs and row.train_loss is not None
        if ended:
            self.free.append(now)
        if self.path and (ended or now - self.kept > KEPT_EVERY_S):
            self.kept = now
            self._keep(self.path)
        return self.seeds[seed]

    def _keep(self, path: Path) -> None:
        """In a moment: not flushed to disk, as a checkpoint is."""
        known = {**self.before, **{str(seed): seconds for seed, seconds in self.seeds.items()}, TOTAL: self.total}
        new = path.with_name(f".{path.name}.tmp")
        with suppress(OSError):  # a full disk: training goes on
            new.write_text(json.dumps(known), encoding="ascii")
            new.replace(path)
