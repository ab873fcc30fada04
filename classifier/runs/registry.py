"""MLflow's model registry: the versions of one registered model and its alias @champion.

Setting the alias is the commit point of a promotion and of a rollback. The version's tags, such as the version that it
replaces, are written before and are valid only while that version is the champion. A killed process therefore leaves
either the old or the new champion, and nothing to repair.

Within a project, a file lock serializes promotions: the first one succeeds; the second finds a different champion from
the one it was compared with, and changes nothing. MLflow cannot set an alias conditionally. If two machines set it on a
server within milliseconds, both succeed and the later one is the champion; a rollback then restores the version that
both were compared with.
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
from classifier.recording.tags import NOTE_TAG, TEST_TAG, WEIGHTS_TAG, tag_queries, upgraded_tags

CHAMPION = "champion"  # the alias
# Tags of a version: how it last became the champion.
REPLACES_TAG = "promotion.replaces"  # the champion before it, or NOTHING
WAY_TAG = "promotion.way"  # PROMOTED or ROLLED_BACK
AT_TAG = "promotion.at"  # UTC
NOTHING, PROMOTED, ROLLED_BACK = "none", "promoted", "rolled back"
# Stores of versions without REPLACES_TAG have an alias instead, and a tag on the version that was rolled back.
OLD_PREVIOUS, OLD_ROLLED_BACK_TAG = "previous", "promotion.rolled_back_at"
ABSENT = "RESOURCE_DOES_NOT_EXIST"  # MLflow's code
PATIENCE_S = 120.0  # seconds to wait for other promotions of this project


class Registry:
    """The versions of the registered model `name`, which may not exist yet."""

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
        """The run of a version; None if it was permanently deleted or never recorded."""
        if run_id := self.version(number).run_id:
            with _unless_absent():
                return self.client.get_run(run_id)
        return None

    def version_of(self, weights: str, test_data: str) -> ModelVersion | None:
        """The version with these weights, evaluated on this test split, each by its SHA-256."""
        found = [
            version
            for query in tag_queries(WEIGHTS_TAG, weights)
            for version in self.client.search_model_versions(f"name = '{self.name}' AND {query}")
            if upgraded_tags(version.tags).get(TEST_TAG) == test_data
        ]
        return min(found, key=lambda version: int(version.version), default=None)

    def promote(self, model_id: str, tags: Mapping[str, str], judged_against: str | None) -> str:
        """Make the logged model @champion and return its version; `tags` are those of a new version.

        A model that already has a version keeps it and its tags. `judged_against` is the champion's version during the
        promotion checks. Raises UserError and changes nothing if the champion has changed since then.
        """
        with self._lock():
            self._expect(judged_against)
            known = self.version_of(tags[WEIGHTS_TAG], tags[TEST_TAG])
            number = str(known.version) if known else self._register(model_id, tags)
            self._describe(number)
            if number != judged_against:
                self._move(number, judged_against, PROMOTED)
        return number

    def roll_back(self) -> None:
        """Make the version that @champion replaced the champion again.

        Raises UserError if there is none, if @champion is itself the result of a rollback (two people who react to the
        same alarm must not undo each other's rollback), or if the champion has just changed.
        """
        with self._lock():
            champion, replaced = self.champion(), self.replaced()
            if champion is None or replaced is None:
                raise UserError(f"{self.name}@{CHAMPION} replaced no version: classifier promote RUN promotes a run")
            if since := self._rolled_back_at(champion, replaced):
                raise UserError(
                    f"version {replaced} was itself rolled back at {since}, so version {champion} stays "
                    f"{self.name}@{CHAMPION}: classifier promote {self.version(replaced).run_id} promotes it again"
                )
            self._move(replaced, champion, ROLLED_BACK)

    def _rolled_back_at(self, champion: str, replaced: str) -> str | None:
        """Time of the rollback that made the champion replace this version; None if there was none."""
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
            now = f"version {champion} became" if champion else "no version is"
            raise UserError(f"{now} {self.name}@{CHAMPION} in the meantime: nothing was changed, run it again")

    def _register(self, model_id: str, tags: Mapping[str, str]) -> str:
        """Register a new version. If this process is killed, the next promotion of the same model finds and uses it."""
        with contextlib.redirect_stderr(io.StringIO()):  # hide MLflow's message; the command prints its own
            return str(mlflow.register_model(f"models:/{model_id}", self.name, tags=dict(tags)).version)

    def _describe(self, number: str) -> None:
        """Give the version its run's description, and the model a line that says how to use it."""
        if (run := self.run_of(number)) and (note := run.data.tags.get(NOTE_TAG)):
            self.client.update_model_version(self.name, number, f"Run **{run.info.run_name}**\n\n{note}")
        use = f'`mlflow.pyfunc.load_model("models:/{self.name}@{CHAMPION}")` loads the champion.'
        self.client.update_registered_model(self.name, f"Promoted by `classifier promote`. {use}")

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
def _unless_absent() -> Iterator[None]:
    """Ignore MLflow's error that something does not exist."""
    try:
        yield
    except MlflowException as error:
        if error.error_code != ABSENT:
            raise
