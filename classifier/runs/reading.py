"""Reads recorded runs: all runs as a table, one run by its name or id (`find_run`), and a run's files.

A run is an `mlflow.entities.Run`. If several seeds were trained together, each seed has a nested run, whose data, code
and files are those of its parent.
"""

from __future__ import annotations

import gc
import io
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import mlflow
import pandas as pd
from mlflow.entities import DatasetInput, Experiment, LifecycleStage, Run, ViewType
from mlflow.exceptions import MlflowException

from classifier.errors import UserError
from classifier.params import load_params, upgraded
from classifier.project.lineage import project_root
from classifier.recording.run import SECONDS
from classifier.recording.tags import (
    CHOSEN_TAG,
    DATA_TAG,
    PARENT_TAG,
    SEED_TAG,
    SWEEP_KEY_TAG,
    TEST_TAG,
    upgraded_tags,
)
from classifier.tracking.connection import open_store

SHORTEST = 4  # characters of a run's id
SHOWN = 10  # candidates in a message
MANY = 1000  # runs in one search
LATEST = "latest"
REFERENCES = f"a name, an id or its first {SHORTEST} characters, {LATEST}, @champion"
SWEEP = "is a sweep, the parent of other runs, and has no model: classifier leaderboard shows which to"
PREDICTIONS = "evaluate/predictions.parquet"


def all_runs() -> pd.DataFrame:
    """All runs of the experiment as a `frame`, newest first. Raises UserError if there are none."""
    experiment = open_store()
    with _without_collector():
        if runs := mlflow.search_runs([experiment], output_format="list"):  # pages of 10,000
            return frame(runs)
    raise UserError(no_runs(experiment))


def find_run(reference: str) -> Run:
    """Find a run by `latest`, `@champion`, its name or the last word of its name, its id or a prefix of its id.

    Runs of the project's experiment take precedence. A run of another experiment is found too, because an experiment
    may have been renamed; a line on stderr names that experiment. Raises UserError if no run or several runs match: it
    names the candidates, or says how to restore a run that was deleted, alone or with its experiment.
    """
    wanted, own = reference.strip(), open_store()
    if not wanted:
        raise UserError(f"expected a run; allowed is {REFERENCES}")
    if wanted.startswith("@"):
        return _with_alias(wanted.removeprefix("@"))
    if wanted == LATEST:
        return _latest(own)
    if not (found := _named(wanted, [own])):
        experiments = {each.experiment_id: each for each in mlflow.search_experiments(view_type=ViewType.ALL)}
        everywhere = _named(wanted, [*experiments], ViewType.ALL)
        found = [run for run in everywhere if not _deleted(run) and not _deleted(experiments[run.info.experiment_id])]
        if everywhere and not found:
            raise UserError(_restoring(everywhere[0], experiments[everywhere[0].info.experiment_id]))
        if len(found) == 1:
            name = experiments[found[0].info.experiment_id].name
            print(f"run {found[0].info.run_id} is in the experiment {name!r}", file=sys.stderr)
    if not found:
        newest = mlflow.search_runs([own], max_results=3, output_format="list")
        known = "the newest are " + ", ".join(map(_described, newest)) if newest else no_runs(own)
        raise UserError(f"no run is called {reference!r}; {known}; allowed is {REFERENCES}")
    if len(found) > 1:
        more = " and more" if len(found) > SHOWN else ""
        raise UserError(
            f"{reference!r} matches several runs: {', '.join(map(_described, found[:SHOWN]))}{more}; "
            "name one by more characters of its id"
        )
    return found[0]


def run_seconds(run: Run) -> float | None:
    """Seconds between a run's start and end; None if it has not ended."""
    return (run.info.end_time - run.info.start_time) / 1000 if run.info.end_time else None


def no_runs(own: str) -> str:
    """The message if the experiment with the id `own` has no runs; it names an experiment that has some."""
    experiments = {each.experiment_id: each.name for each in mlflow.search_experiments()}
    newest = mlflow.search_runs([*experiments], max_results=1, output_format="list")
    name = experiments.get(newest[0].info.experiment_id) if newest else None
    hint = f"; {name!r} has: set MLFLOW_EXPERIMENT_NAME={shlex.quote(name)}" if name else ""
    return f"the experiment {experiments[own]!r} has no run, dvc repro makes one{hint}"


def _named(wanted: str, experiments: list[str], view: int = ViewType.ACTIVE_ONLY) -> list[Run]:
    """Runs with this name or, if there are none, with this last word of their name or, if none, with this id prefix."""

    def search(query: str) -> list[Run]:
        return list(mlflow.search_runs(experiments, query, view, MANY, output_format="list"))

    named = [] if "'" in wanted else search(f"attributes.run_name LIKE '%{wanted}'")
    exact = [run for run in named if run.info.run_name == wanted]
    if found := exact or [run for run in named if run.info.run_name.endswith(f" {wanted}")]:
        return found
    is_beginning = re.fullmatch(f"[0-9a-f]{{{SHORTEST},32}}", wanted.lower())
    return search(f"attributes.run_id LIKE '{wanted.lower()}%'") if is_beginning else []


def _latest(experiment: str) -> Run:
    """The newest run that is neither a seed's nested run nor a sweep."""
    for run in mlflow.search_runs([experiment], max_results=MANY, output_format="list"):
        if not {SEED_TAG, SWEEP_KEY_TAG} & upgraded_tags(run.data.tags).keys():
            return run
    raise UserError(no_runs(experiment))


def _with_alias(alias: str) -> Run:
    """The run of the registered model's version with this alias."""
    name = load_params(project_root() / "params.yaml").promote.model
    try:
        version = mlflow.MlflowClient().get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise UserError(f"no version is {name}@{alias}: classifier promote RUN sets @champion") from None
    if not version.run_id:
        raise UserError(f"version {version.version}, which is {name}@{alias}, does not record its run")
    return mlflow.get_run(version.run_id)


def _deleted(entity: Run | Experiment) -> bool:
    stage = entity.info.lifecycle_stage if isinstance(entity, Run) else entity.lifecycle_stage
    return bool(stage == LifecycleStage.DELETED)


def _restoring(run: Run, experiment: Experiment) -> str:
    if _deleted(experiment):
        command = f"mlflow experiments restore -x {experiment.experiment_id}"
        return f"run {run.info.run_id} was deleted with the experiment {experiment.name!r}: {command}"
    return f"run {run.info.run_id} was deleted: mlflow runs restore --run-id {run.info.run_id}"


def run_with_files(run: Run) -> Run:
    """The run with this run's files and lineage: the parent of a seed's nested run, otherwise the run itself."""
    parent = _parent_of_seed(run)
    return mlflow.get_run(parent) if parent else run


def is_sweep(run: Run) -> bool:
    """Whether the run is the parent of whole runs, rather than of the nested runs of seeds."""
    query = f"tags.`{PARENT_TAG}` = '{run.info.run_id}'"
    children = mlflow.search_runs([run.info.experiment_id], query, max_results=1, output_format="list")
    return any(SEED_TAG not in upgraded_tags(child.data.tags) for child in children)


def predictions(run: Run) -> pd.DataFrame:
    """The predictions on the test split (`reports/evaluate/predictions.parquet`): index, label, predicted, p_0 ...

    Raises FileNotFoundError if the run has none, or is the nested run of a seed whose predictions were not kept.
    """
    parent = run_with_files(run)
    seed, chosen = (upgraded_tags(each.data.tags).get(tag) for each, tag in ((run, SEED_TAG), (parent, CHOSEN_TAG)))
    if parent is not run and chosen != seed:
        raise FileNotFoundError(
            f"run {run.info.run_id} has seed {seed}; its parent, run {parent.info.run_id}, keeps the predictions of "
            f"seed {chosen} only"
        )
    return read_predictions(parent.info.artifact_uri)


def read_predictions(artifact_uri: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Read the predictions of a run by its artifact URI; all columns by default."""
    from pyarrow.parquet import ParquetFile  # pandas' own reader takes three times as long for such a small file

    table = ParquetFile(io.BytesIO(artifact(artifact_uri, PREDICTIONS))).read(
        columns=list(columns) if columns else None, use_threads=False
    )
    return pd.DataFrame({name: table[name].to_numpy() for name in table.column_names})


def artifact(artifact_uri: str, path: str) -> bytes:
    """Read a run's file.

    Raises FileNotFoundError if there is no such file, OSError if its store cannot be reached.
    """
    url = urlsplit(artifact_uri)
    if url.scheme in ("", "file"):
        return (Path(url2pathname(url.path)) / path).read_bytes()
    uri = f"{artifact_uri}/{path}"
    with tempfile.TemporaryDirectory() as folder:
        try:
            names = [file.path for file in mlflow.artifacts.list_artifacts(artifact_uri=uri.rpartition("/")[0])]
            if Path(path).name not in (Path(name).name for name in names):
                raise FileNotFoundError(f"{uri} does not exist")
            return Path(mlflow.artifacts.download_artifacts(uri, dst_path=folder)).read_bytes()
        except MlflowException as error:
            raise OSError(f"{uri} cannot be read: {str(error).splitlines()[0][:300]}") from None


def short(value: str | None) -> str:
    """Shorten a hash to 12 digits; return other values unchanged, and "-" for None."""
    if value is None:
        return "-"
    digits = value.removesuffix(".dir")
    return digits[:12] if re.fullmatch("[0-9a-f]{32,}", digits) else value


def frame(runs: Sequence[Run]) -> pd.DataFrame:
    """A row per run, with its id as the index. Missing values are None or NaN. Columns:

    - name, status, start (milliseconds since 1970), trained_s (seconds of training; None for a run that was created
      from outputs, or by a version that did not record it), artifact_uri (the parent's for a seed's nested run)
    - replica_of: the parent's id of a seed's nested run; seed: for a run of several seeds, that of its model
    - data: DVC's hash; data_name; test_data: the SHA-256 of the test split, or `data` if no run of this data recorded
      it; only runs with equal test_data can be compared
    - predictions_uri: the artifact URI of the run with its predictions; None if they were not kept
    - params.<name> (current names) and tags.<name> (text), metrics.<name> (the last value)

    A seed's nested run inherits data and tags that it lacks from its parent.
    """
    known = {run.info.run_id: run for run in runs}
    rows = pd.DataFrame([_row(run, known.get(_parent_of_seed(run) or "")) for run in runs], [*known])
    for column in ("data", f"tags.{TEST_TAG}", "seed"):
        if column not in rows:
            rows[column] = None
    test = rows[f"tags.{TEST_TAG}"]
    said = dict(zip(rows["data"][test.notna()], test.dropna(), strict=True))
    rows["test_data"] = test.fillna(rows["data"].map(said)).fillna(rows["data"])
    return rows


def _row(run: Run, parent: Run | None) -> dict[str, object]:
    info, tags, params = run.info, upgraded_tags(run.data.tags), upgraded(run.data.params)
    artifact_uri, has_predictions = info.artifact_uri, True
    seed = tags.get(CHOSEN_TAG, params.get("train.seed"))
    inputs = datasets_of(run)
    if parent:
        parents = upgraded_tags(parent.data.tags)
        artifact_uri, has_predictions = parent.info.artifact_uri, parents.get(CHOSEN_TAG) == tags[SEED_TAG]
        seed = tags[SEED_TAG]
        inputs = inputs or datasets_of(parent)
        tags = {**parents, **tags}
    return {
        "name": info.run_name,
        "status": info.status,
        "start": info.start_time,
        "trained_s": run.data.metrics.get(SECONDS),
        "artifact_uri": artifact_uri,
        "replica_of": _parent_of_seed(run),
        "seed": seed,
        "data": tags.get(DATA_TAG, inputs[0].dataset.digest if inputs else None),
        "data_name": inputs[0].dataset.name if inputs else None,
        "predictions_uri": artifact_uri if has_predictions else None,
        **{f"params.{name}": value for name, value in params.items()},
        **{f"metrics.{name}": value for name, value in run.data.metrics.items()},
        **{f"tags.{name}": value for name, value in tags.items()},
    }


def datasets_of(run: Run) -> list[DatasetInput]:
    """The data sets that a run was trained on; none for a sweep."""
    return list(run.inputs.dataset_inputs) if run.inputs else []


def _parent_of_seed(run: Run) -> str | None:
    """The parent's id of a seed's nested run; None for other runs, including those of a sweep."""
    return run.data.tags.get(PARENT_TAG) if SEED_TAG in upgraded_tags(run.data.tags) else None


def _described(run: Run) -> str:
    return f"{run.info.run_id[:12]} ({run.info.run_name})"


@contextmanager
def _without_collector() -> Iterator[None]:
    """Disable the garbage collector, which would take two thirds of the time to read 1,000 runs (200,000 objects)."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
