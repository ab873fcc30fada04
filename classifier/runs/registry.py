"""MLflow's model registry: versions of one registered model, its aliases @champion and @previous, and who moves them.

What makes two promotions at once safe on every store is that creating a registered model succeeds for one caller alone:
NAME.promotion exists while aliases move. It notes where they go, so that a move which its process did not survive is
finished by the next one. (A file lock would end at the machine, and keep no note.) A team's server lets nobody delete
what another user made, so that the lock of another's dead process is renamed.
"""

from __future__ import annotations

import contextlib
import io
import json
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

import mlflow
from filelock import FileLock
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from classifier.errors import UserError
from classifier.project.lineage import project_root
from classifier.project.ownership import is_living, mark
from classifier.runs.reading import TEST_TAG
from classifier.tracking.delivery import WEIGHTS_TAG
from classifier.tracking.errors import explained

CHAMPION, PREVIOUS = "champion", "previous"  # aliases
PROMOTED_TAG, ROLLED_BACK_TAG = "promotion.at", "promotion.rolled_back_at"  # of a version: the last time, UTC
HOLDER_TAG, MOVE_TAG = "holder", "move"  # of the lock
ABSENT, PRESENT = "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS"  # MLflow's codes
FORBIDDEN = "PERMISSION_DENIED"
DEAD_S = 30.0  # seconds after which the lock of another machine's process, or of one that hangs, is that of a dead one
PATIENCE_S = 120.0  # seconds for the promotions of this project that go first


@dataclass(frozen=True)
class Move:
    """Where the aliases go, and the tag that a version gets for it."""

    champion: str
    previous: str | None
    version: str
    tag: str
    at: str


class Registry:
    """The versions and aliases of the registered model `name`, which need not exist yet."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lock = f"{name}.promotion"
        self.client = mlflow.MlflowClient()

    def aliases(self) -> dict[str, str]:
        """Alias -> version, of one moment."""
        with _unless(ABSENT):
            return {alias: str(number) for alias, number in self.client.get_registered_model(self.name).aliases.items()}
        return {}

    def version(self, number: str) -> ModelVersion:
        return self.client.get_model_version(self.name, number)

    def run_of(self, number: str) -> Run | None:
        """The run that made a version; None when it is gone for good, or was never named."""
        if run_id := self.version(number).run_id:
            with _unless(ABSENT):
                return self.client.get_run(run_id)
        return None

    def version_of(self, weights: str, test_data: str) -> ModelVersion | None:
        """The version with these weights, evaluated on this test split, each by its SHA-256."""
        query = f"name = '{self.name}' AND tags.`{WEIGHTS_TAG}` = '{weights}'"
        found = self.client.search_model_versions(query, order_by=["version_number ASC"])
        return next((version for version in found if version.tags.get(TEST_TAG) == test_data), None)

    def promote(self, model_id: str, tags: Mapping[str, str], judged_against: str | None) -> str:
        """Make the logged model @champion, with `tags` for a new version, and the champion @previous; the version.

        A model that has a version already keeps it, with its tags. `judged_against` is the champion's version that the
        gate compared with. UserError, with nothing changed, when @champion moved since then.
        """
        with self._moving(judged_against):
            known = self.version_of(tags[WEIGHTS_TAG], tags[TEST_TAG])
            number = str(known.version) if known else self._register(model_id, tags)
            if number != judged_against:
                self._note(Move(number, judged_against, number, PROMOTED_TAG, _now()))
        return number

    def roll_back(self) -> None:
        """Let @champion and @previous change places.

        UserError when there is no @previous, when it was rolled back itself (a second person in the same alarm must
        not bring the bad version back), or when @champion moved in this moment.
        """
        champion = self.aliases().get(CHAMPION)
        with self._moving(champion):
            previous = self.aliases().get(PREVIOUS)
            if champion is None or previous is None:
                raise UserError(
                    f"{self.name} has no @{PREVIOUS} to go back to: classifier promote RUN_ID promotes a run"
                )
            version = self.version(previous)
            if (since := version.tags.get(ROLLED_BACK_TAG, "")) > version.tags.get(PROMOTED_TAG, ""):
                raise UserError(
                    f"version {previous}, {self.name}@{PREVIOUS}, was itself rolled back at {since}, so version "
                    f"{champion} stays: classifier promote {version.run_id} makes it the champion nevertheless"
                )
            self._note(Move(previous, champion, champion, ROLLED_BACK_TAG, _now()))

    def settle(self) -> None:
        """Wait for whoever moves aliases now, and finish what a process that was killed left."""
        if self._lock_tags() is not None:
            with self._alone():
                pass

    def _register(self, model_id: str, tags: Mapping[str, str]) -> str:
        """A new version. A process that is killed after it leaves a version without alias, which the next one takes."""
        with contextlib.redirect_stderr(io.StringIO()):  # MLflow says there what the command says better
            return str(mlflow.register_model(f"models:/{model_id}", self.name, tags=dict(tags)).version)

    @contextmanager
    def _moving(self, expected: str | None) -> Iterator[None]:
        """As _alone; UserError when another version than `expected` is the champion by now."""
        with self._alone():
            if (champion := self.aliases().get(CHAMPION)) != expected:
                now = f"version {champion} became" if champion else "nobody is"
                raise UserError(f"{now} {self.name}@{CHAMPION} in the meantime: nothing was changed, run it again")
            yield

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the lock in the block; the move that the block notes is carried out at its end."""
        folder = project_root() / ".pipeline"
        folder.mkdir(exist_ok=True)
        # On this machine one at a time, lest two find the same dead process's lock and one removes the other's new one.
        with FileLock(folder / "promotion.lock", timeout=PATIENCE_S):
            holder, seen, since = mark(), "", time.monotonic()
            while not self._take(holder):
                if (other := self._holder()) != seen:
                    seen, since = other, time.monotonic()
                if other and (not is_living(other) or time.monotonic() - since > DEAD_S):
                    self._release(other)
                else:
                    time.sleep(0.1)
            try:
                yield
            finally:
                self._release(holder)

    def _take(self, holder: str) -> bool:
        with _unless(PRESENT, ABSENT):  # absent: it was there, and when MLflow looked for more it was gone
            self.client.create_registered_model(
                self.lock, {HOLDER_TAG: holder}, "exists while @champion is being moved"
            )
            return True
        return False

    def _note(self, move: Move) -> None:
        """Tell who comes after us what to finish. From here on the move happens, whatever becomes of this process."""
        if self._holder() != mark():
            raise UserError(f"this took over {DEAD_S:g} s, and another promotion went first: nothing was changed")
        note = asdict(move) | {HOLDER_TAG: mark()}  # should the lock become another's at this moment
        self.client.set_registered_model_tag(self.lock, MOVE_TAG, json.dumps(note))

    def _release(self, holder: str) -> None:
        """Carry out what the holder noted, if anything, and remove the lock; nothing when it is another's by now."""
        tags = self._lock_tags() or {}
        if tags.get(HOLDER_TAG) != holder:
            return
        note = json.loads(tags.get(MOVE_TAG, "{}"))
        if note.pop(HOLDER_TAG, None) == holder:
            with _unless(ABSENT):  # a version that someone deleted meanwhile
                self._carry_out(Move(**note))
        with _unless(ABSENT):  # on another machine somebody found it dead too
            self._remove_lock()

    def _remove_lock(self) -> None:
        """One that another user made can only be moved out of the way."""
        try:
            self.client.delete_registered_model(self.lock)
        except MlflowException as error:
            if error.error_code != FORBIDDEN:
                raise
            self.client.rename_registered_model(self.lock, f"{self.lock}.{uuid.uuid4().hex[:8]}.gone")

    def _carry_out(self, move: Move) -> None:
        """Doing it again changes nothing."""
        self.client.set_registered_model_alias(self.name, CHAMPION, move.champion)
        if move.previous:
            self.client.set_registered_model_alias(self.name, PREVIOUS, move.previous)
        self.client.set_model_version_tag(self.name, move.version, move.tag, move.at)

    def _holder(self) -> str:
        """Who holds the lock; empty when nobody does. UserError when a model of that name is no lock."""
        if (tags := self._lock_tags()) is None:
            return ""
        if HOLDER_TAG not in tags:
            raise UserError(f"the registered model {self.lock} is in the way, whose name promotions need: rename it")
        return tags[HOLDER_TAG]

    def _lock_tags(self) -> dict[str, str] | None:
        with _unless(ABSENT):
            return dict(self.client.get_registered_model(self.lock).tags)
        return None


@contextmanager
def reported() -> Iterator[None]:
    """What MLflow refuses or does not answer, as an OSError of one line."""
    try:
        yield
    except MlflowException as error:
        raise OSError(f"MLflow: {explained(error)}") from None


@contextmanager
def _unless(*codes: str) -> Iterator[None]:
    """Pass over MLflow's errors with these codes."""
    try:
        yield
    except MlflowException as error:
        if error.error_code not in codes:
            raise


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
