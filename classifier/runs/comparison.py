"""Compare recorded runs: params, code, data, environment, results, and single images."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.entities import Run

from classifier.data.dataset import read_meta, read_split
from classifier.errors import UserError
from classifier.project.lineage import project_root
from classifier.recording.tags import COMMIT_TAG, DIRTY_TAG, ENVIRONMENT, PROBLEM_TAG
from classifier.repository.code_diff import Code, code_diff
from classifier.repository.dvc import cache, listing_in, place_in
from classifier.repository.lockfile import read_lock
from classifier.repository.outputs import DATA
from classifier.runs.reading import artifact, frame, read_predictions, run_with_files
from classifier.runs.significance import Disagreement, holm, paired

CURVES = ("train/running_loss", "validation/loss", "validation/accuracy")
PROBABILITIES = r"^p_\d+$"  # columns of the predictions, one per class
Curve = Sequence[tuple[int, float]]  # step, value


@dataclass(frozen=True)
class Difference:
    """A value that differs between the runs; None for a run without it."""

    name: str
    values: Sequence[str | None]  # in the runs' order


@dataclass(frozen=True)
class Change:
    """Git's diff from the first run's code to another run's, or why it is unknown."""

    diff: str
    problem: str | None = None

    @property
    def files(self) -> list[tuple[str, int, int]]:
        """Name, added and removed lines."""
        found = []
        for part in self.diff.split("\ndiff --git ") if self.diff else []:
            name = part.partition("\n")[0].rpartition(" b/")[2]
            lines = part.partition("\n@@")[2].splitlines()
            found.append((name, sum(line[:1] == "+" for line in lines), sum(line[:1] == "-" for line in lines)))
        return found


@dataclass(frozen=True)
class Results:
    """The predictions of the runs on the same test images, compared."""

    class_names: Sequence[str]
    per_class: pd.DataFrame  # name, images, accuracy_<k> of the k-th run
    disagreements: pd.DataFrame  # a row per image: index, label, predicted_<k>, probability_<k>
    alone: Sequence[Disagreement]  # the first run with each other one
    p_corrected: Sequence[float]  # their p-values with Holm's correction


@dataclass(frozen=True)
class Comparison:
    """The comparison of two or more runs, in the given order."""

    runs: pd.DataFrame  # rows of `reading.frame`
    params: Sequence[Difference]
    data: Sequence[Difference]
    environment: Sequence[Difference]
    code: Sequence[Change]  # from the first run to each other one
    curves: Sequence[Mapping[str, Curve]]
    results: Results | None  # None if a run has no predictions
    problems: Sequence[str]  # what is missing

    def summary(self) -> dict[str, Any]:
        """As JSON."""
        metrics = [name for name in map(str, self.runs) if name.startswith("metrics.test/")]
        shown = self.runs[["name", "status", "start", "seed", "trained_s", "test_data", *metrics]]
        shown = shown.rename(columns=lambda name: name.removeprefix("metrics.")).rename_axis("run")
        return {
            "runs": _records(shown.reset_index()),
            "params": {each.name: list(each.values) for each in self.params},
            "code": [{"files": change.files, "problem": change.problem} for change in self.code],
            "data": {each.name: list(each.values) for each in self.data},
            "environment": {each.name: list(each.values) for each in self.environment},
            "per_class": _records(self.results.per_class) if self.results else None,
            "disagreements": _records(self.results.disagreements) if self.results else None,
            "mcnemar": [
                vars(alone) | {"p_corrected": p}
                for alone, p in zip(self.results.alone, self.results.p_corrected, strict=True)
            ]
            if self.results
            else None,
            "problems": list(self.problems),
        }


def compare(runs: Sequence[Run]) -> Comparison:
    """Compare two or more runs, each with the first.

    Raises UserError if there are fewer, if they are not distinct, or if they were evaluated on different test data.
    """
    ids = [run.info.run_id for run in runs]
    if len(ids) < 2 or len(set(ids)) < len(ids):
        raise UserError(f"expected two or more different runs, got {', '.join(ids) or 'none'}")
    known = {run.info.run_id: run for run in [*runs, *map(run_with_files, runs)]}
    rows = frame(list(known.values())).loc[ids]
    _refuse_other_test_data(rows["test_data"])
    results, problems = _results(rows)
    code = [_change(rows.iloc[0], rows.iloc[number]) for number in range(1, len(rows))]
    return Comparison(
        runs=rows,
        params=_differences(rows, "params."),
        data=_differences(rows.rename(columns={"data": "is.data", "data_name": "is.data set"}), "is."),
        environment=[*_differences(rows, f"tags.{ENVIRONMENT}"), *_packages(list(rows["artifact_uri"]))],
        code=code,
        curves=[_curves(run) for run in ids],
        results=results,
        problems=[*problems, *(change.problem for change in code if change.problem)],
    )


def _refuse_other_test_data(digests: pd.Series[str]) -> None:
    known = digests.dropna()
    others = known[known != known.iloc[0]] if len(known) else known
    if len(others):
        raise UserError(
            f"runs {known.index[0]} and {others.index[0]} cannot be compared, their test data differ: "
            f"{known.iloc[0]} and {others.iloc[0]}"
        )


def _differences(rows: pd.DataFrame, beginning: str) -> list[Difference]:
    found = []
    for column in map(str, rows):
        if column.startswith(beginning):
            values = [None if pd.isna(value) else str(value) for value in rows[column]]
            if len(set(values)) > 1:
                found.append(Difference(column.removeprefix(beginning), values))
    return found


def _packages(addresses: Sequence[str]) -> list[Difference]:
    """Installed packages whose versions differ; empty if a run did not record them."""
    installed = []
    for address in addresses:
        try:
            installed.append(json.loads(artifact(address, "code/environment.json"))["packages"])
        except (OSError, ValueError, KeyError):
            return []
    names = sorted(set().union(*installed))
    versions = {name: [packages.get(name) for packages in installed] for name in names}
    return [Difference(f"package {name}", found) for name, found in versions.items() if len(set(found)) > 1]


def _change(first: pd.Series[Any], second: pd.Series[Any]) -> Change:
    try:
        return Change(code_diff(_code(first), _code(second), project_root()))
    except (OSError, ValueError) as error:
        return Change("", f"code: {error}")


def _code(row: pd.Series[Any]) -> Code:
    commit, dirty, problem = (row.get(f"tags.{tag}") for tag in (COMMIT_TAG, DIRTY_TAG, PROBLEM_TAG))
    why = problem if isinstance(problem, str) else "unknown"  # None or NaN if the run has no such tag
    if not isinstance(commit, str):
        raise UserError(f"run {row.name} was recorded without its commit ({why})")
    if not isinstance(dirty, str):
        raise UserError(f"run {row.name} was recorded without its uncommitted changes ({why})")
    return Code(commit, artifact(row["artifact_uri"], "code/uncommitted.diff") if dirty == "true" else b"")


def _curves(run: str) -> dict[str, Curve]:
    client = mlflow.MlflowClient()
    points = {name: client.get_metric_history(run, name) for name in CURVES}
    return {name: sorted((point.step, point.value) for point in found) for name, found in points.items() if found}


def _results(rows: pd.DataFrame) -> tuple[Results | None, list[str]]:
    """Return the results and no problems, or None and the problems."""
    tables, problems = [], []
    for run, address in rows["predictions_uri"].items():
        try:
            if not isinstance(address, str):
                raise FileNotFoundError("only those of the chosen seed were kept")
            tables.append(read_predictions(address))
        except FileNotFoundError as error:
            problems.append(f"run {run} has no predictions: {error}")
        except (OSError, ValueError) as error:
            problems.append(f"run {run}: its predictions cannot be read: {error}")
    if problems:
        return None, problems
    names = _class_names(rows["predictions_uri"].iloc[0], tables[0])
    alone = [paired(tables[0], table) for table in tables[1:]]
    corrected = holm([each.p for each in alone])
    return Results(names, per_class(tables, names), disagreements(tables), alone, corrected), []


def _class_names(address: str, table: pd.DataFrame) -> list[str]:
    """Return the class names in the evaluation's per_class.csv, or the classes' numbers if it cannot be read."""
    try:
        return [str(name) for name in pd.read_csv(io.BytesIO(artifact(address, "evaluate/per_class.csv")))["name"]]
    except (OSError, ValueError, KeyError):
        return [str(number) for number in range(table.filter(regex=PROBABILITIES).shape[1])]


def per_class(tables: Sequence[pd.DataFrame], class_names: Sequence[str]) -> pd.DataFrame:
    """A row per class with images: name, images, and each run's accuracy_<k>."""
    labels = tables[0]["label"]
    right = pd.DataFrame({f"accuracy_{k}": table["predicted"] == labels for k, table in enumerate(tables)})
    classes = right.groupby(labels)
    images = classes.size()
    found = pd.DataFrame({"name": [class_names[label] for label in images.index], "images": images.to_numpy()})
    return found.join(classes.mean().reset_index(drop=True))


def disagreements(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The images that the runs predict differently, sorted by the sum of their probabilities, highest first."""
    probabilities = [table.filter(regex=PROBABILITIES).to_numpy() for table in tables]
    columns = {"index": tables[0]["index"], "label": tables[0]["label"]}
    for k, (table, of_table) in enumerate(zip(tables, probabilities, strict=True)):
        columns[f"predicted_{k}"] = table["predicted"]
        columns[f"probability_{k}"] = pd.Series(of_table[np.arange(len(table)), table["predicted"]])
    found = pd.DataFrame(columns)
    unlike = found[found.filter(regex="^predicted_").nunique(axis=1) > 1]
    sureness = unlike.filter(regex="^probability_").sum(axis=1)
    return unlike.loc[sureness.sort_values(ascending=False, kind="stable").index].reset_index(drop=True)


def find_test_images(rows: pd.DataFrame) -> np.ndarray:
    """The test split's images `(N, C, H, W) uint8`, from the workspace or DVC's cache.

    Raises FileNotFoundError, with the command that fetches them, if neither has them.
    """
    wanted, data = rows["test_data"].iloc[0], str(rows["data"].iloc[0])
    root = project_root()
    for files in _places(root, data):
        with suppress(OSError, ValueError):
            return _test_images_in(files, wanted)
    command = f"dvc fetch --all-commits {DATA}"
    with suppress(OSError, ValueError):
        command = f"dvc pull {DATA}" if read_lock().outputs.get(str(DATA)) == data else command
    raise FileNotFoundError(f"the test images of data {data} are neither in {DATA} nor in DVC's cache: {command}")


def _places(root: Path, data: str) -> Iterator[dict[str, Path]]:
    """Possible paths of a folder's files by name: in the workspace, then in DVC's cache, where its hash is `data`."""
    yield {path.name: path for path in (root / DATA).glob("*")}
    if data.endswith(".dir"):
        folder = cache(root)
        with suppress(OSError, ValueError, KeyError):
            yield {name: place_in(folder, md5) for name, md5 in listing_in(folder, data).items()}


def _test_images_in(files: Mapping[str, Path], wanted: str) -> np.ndarray:
    """Read the test images. Raises OSError or UserError unless the test split has the SHA-256 `wanted`."""
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, path in files.items():
            (folder / name).symlink_to(path.absolute())
        meta = read_meta(folder)
        if meta.sha256["test"] != wanted:
            raise UserError(f"{DATA} has other test images")
        return read_split(folder, "test", meta).images


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return list(json.loads(table.to_json(orient="records", double_precision=15)))
