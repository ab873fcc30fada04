"""MLflow's model registry: the versions of one registered model, its alias @champion, and who moves it.

Moving the alias is the commit point of a promotion and of a rollback. All that a version has to say for it, such as the
version that it replaces, is written before, and counts only while that version is the champion. A process that is
killed therefore leaves the old champion or the new one, and nothing to repair.

Of two promotions in one project the first wins, because a file lock lets one move the alias at a time: the other finds
another champion than it was compared with, and changes nothing. MLflow cannot move an alias on condition. On a server,
two machines that move it within the milliseconds between the last look and the move both succeed, and the later one is
the champion; rolling back then leads to the version that both were compared with.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime

import mlflow
from filelock import FileLock
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from classifier.errors import UserError
from classifier.project.lineage import project_root
from classifier.runs.reading import TEST_TAG
from classifier.tracking.delivery import WEIGHTS_TAG
from classifier.tracking.errors import explained

CHAMPION = "champion"  # the alias
# Tags of a version: how it last became the champion.
REPLACES_TAG = "promotion.replaces"  # the champion before it, or NOTHING
WAY_TAG = "promotion.way"  # PROMOTED or ROLLED_BACK
AT_TAG = "promotion.at"  # UTC
NOTHING, PROMOTED, ROLLED_BACK = "none", "promoted", "rolled back"
# Stores written before there was REPLACES_TAG have an alias for it, and a tag of the version that was rolled back.
OLD_PREVIOUS, OLD_ROLLED_BACK_TAG = "previous", "promotion.rolled_back_at"
ABSENT = "RESOURCE_DOES_NOT_EXIST"  # MLflow's code
PATIENCE_S = 120.0  # seconds to wait for other promotions of this project


class Registry:
    """The versions of the registered model `name`, which need not exist yet."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.client = mlflow.MlflowClient()

    def champion(self) -> str | None:
        """The version that is @champion."""
        return self._aliases().get(CHAMPION)

    def replaced(self) -> str | None:
        """The version that @champion replaced."""
        aliases = self._aliases()
        if (champion := aliases.get(CHAMPION)) is None:
            return None
        replaced = self.version(champion).tags.get(REPLACES_TAG) or aliases.get(OLD_PREVIOUS)
        return None if replaced == NOTHING else replaced

    def version(self, number: str) -> ModelVersion:
        return self.client.get_model_version(self.name, number)

    def run_of(self, number: str) -> Run | None:
        """The run that made a version; None when it was deleted for good, or was never named."""
        if run_id := self.version(number).run_id:
            with _unless_absent():
                return self.client.get_run(run_id)
        return None

    def version_of(self, weights: str, test_data: str) -> ModelVersion | None:
        """The version with these weights, evaluated on this test split, each by its SHA-256."""
        query = f"name = '{self.name}' AND tags.`{WEIGHTS_TAG}` = '{weights}'"
        found = self.client.search_model_versions(query, order_by=["version_number ASC"])
        return next((version for version in found if version.tags.get(TEST_TAG) == test_data), None)

    def promote(self, model_id: str, tags: Mapping[str, str], judged_against: str | None) -> str:
        """Make the logged model @champion, with `tags` for a new version; the version.

        A model that has a version already keeps it, with its tags. `judged_against` is the version that was the
        champion during the promotion checks. Raises UserError, with nothing changed, when @champion moved since then.
        """
        with self._lock():
            self._expect(judged_against)
            known = self.version_of(tags[WEIGHTS_TAG], tags[TEST_TAG])
            number = str(known.version) if known else self._register(model_id, tags)
            if number != judged_against:
                self._move(number, judged_against, PROMOTED)
        return number

    def roll_back(self) -> None:
        """Make the version that @champion replaced the champion again.

        Raises UserError when there is none, when @champion is the result of a rollback itself (two people who react
        to the same alarm must not undo each other's), or when it moved in this moment.
        """
        with self._lock():
            champion, replaced = self.champion(), self.replaced()
            if champion is None or replaced is None:
                raise UserError(f"{self.name}@{CHAMPION} replaced no version: classifier promote RUN_ID promotes a run")
            if since := self._rolled_back_at(champion, replaced):
                raise UserError(
                    f"version {replaced} was itself rolled back at {since}, so version {champion} stays "
                    f"{self.name}@{CHAMPION}: classifier promote {self.version(replaced).run_id} promotes it again"
                )
            self._move(replaced, champion, ROLLED_BACK)

    def _rolled_back_at(self, champion: str, replaced: str) -> str | None:
        """When the champion took the place of the version that it replaced by a rollback; None when it did not."""
        tags, old_tags = self.version(champion).tags, self.version(replaced).tags
        if WAY_TAG in tags:
            return tags[AT_TAG] if tags[WAY_TAG] == ROLLED_BACK else None
        since = old_tags.get(OLD_ROLLED_BACK_TAG, "")
        return since if since > old_tags.get(AT_TAG, "") else None

    def _move(self, number: str, replaces: str | None, way: str) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        for tag, value in {REPLACES_TAG: replaces or NOTHING, WAY_TAG: way, AT_TAG: now}.items():
            self.client.set_model_version_tag(self.name, number, tag, value)
        self._expect(replaces)
        self.client.set_registered_model_alias(self.name, CHAMPION, number)
        if replaces and OLD_PREVIOUS in self._aliases():  # only the user who made a model may delete its aliases
            self.client.set_registered_model_alias(self.name, OLD_PREVIOUS, replaces)

    def _expect(self, expected: str | None) -> None:
        if (champion := self.champion()) != expected:
            now = f"version {champion} became" if champion else "nobody is"
            raise UserError(f"{now} {self.name}@{CHAMPION} in the meantime: nothing was changed, run it again")

    def _register(self, model_id: str, tags: Mapping[str, str]) -> str:
        """A new version. If this process is killed, the next promotion of the same model finds and uses it."""
        with contextlib.redirect_stderr(io.StringIO()):  # MLflow says there what the command says better
            return str(mlflow.register_model(f"models:/{model_id}", self.name, tags=dict(tags)).version)

    def _aliases(self) -> dict[str, str]:
        with _unless_absent():
            return {alias: str(number) for alias, number in self.client.get_registered_model(self.name).aliases.items()}
        return {}

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """One process of this project at a time."""
        folder = project_root() / ".pipeline"
        folder.mkdir(exist_ok=True)
        with FileLock(folder / "promotion.lock", timeout=PATIENCE_S):
            yield


@contextmanager
def reported() -> Iterator[None]:
    """Turn what MLflow refuses or does not answer into an OSError of one line."""
    try:
        yield
    except MlflowException as error:
        raise OSError(f"MLflow: {explained(error)}") from None


@contextmanager
def _unless_absent() -> Iterator[None]:
    """Pass over MLflow's error that something does not exist."""
    try:
        yield
    except MlflowException as error:
        if error.error_code != ABSENT:
            raise
