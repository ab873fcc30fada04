"""Promotion checks: lineage, limits and the comparison with the champion, with a reason for each that fails."""

from __future__ import annotations

import math
import re
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow
import pandas as pd
from mlflow.entities import LoggedModel, LoggedModelStatus, Run
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from classifier.errors import UserError
from classifier.params import PromoteParams
from classifier.project.lineage import project_root
from classifier.recording.tags import (
    BASELINE_TAG,
    COMMIT_TAG,
    DATA_TAG,
    DIRTY_TAG,
    ERROR_TAG,
    EVALUATED_TAG,
    EXPERIMENT_TAG,
    MODEL_TAG,
    PARENT_TAG,
    PROBLEM_TAG,
    SEED_TAG,
    TEST_TAG,
    WEIGHTS_TAG,
    upgraded_tags,
)
from classifier.repository.git import Repository, git_line
from classifier.repository.outputs import MODEL
from classifier.runs.reading import SWEEP, is_sweep, predictions
from classifier.runs.registry import Registry
from classifier.runs.significance import paired

LINEAGE = {  # tags that every version has, and their content
    COMMIT_TAG: "the commit that made it",
    DATA_TAG: "DVC's hash of the data",
    MODEL_TAG: "DVC's hash of the model",
    WEIGHTS_TAG: "the hash of its weights",
    TEST_TAG: "which test split it was evaluated on",
}
OPTIONAL_LINEAGE = (DIRTY_TAG, EXPERIMENT_TAG, BASELINE_TAG)
LOGGED = "data/classifier"  # the model directory in a logged model
WARM_UP, TIMED = 20, 200  # single images


@dataclass(frozen=True)
class Check:
    """One promotion check: a value, what params.yaml allows, and whether it passed."""

    name: str
    meaning: str
    value: float
    allowed: str
    passed: bool

    @property
    def reason(self) -> str:
        return f"{self.meaning} is {self.value:.4g}, allowed is {self.allowed}"


@dataclass(frozen=True)
class Verdict:
    """The result of all promotion checks of a run. They change nothing."""

    run: Run
    champion: str | None  # the version that is @champion, with which the run was compared
    model_id: str = ""  # of the run's logged model
    checks: Sequence[Check] = ()
    problem: str | None = None  # why the run cannot be measured or compared
    already: bool = False  # the champion has these weights, evaluated on the same test split

    @property
    def reasons(self) -> list[str]:
        """Why the run may not become the champion; empty if it may."""
        return [*filter(None, [self.problem]), *(check.reason for check in self.checks if not check.passed)]

    @property
    def tags(self) -> dict[str, str]:
        """The tags of the run's version: lineage, test metrics, and the values of the checks."""
        tags, metrics = upgraded_tags(self.run.data.tags), self.run.data.metrics
        return (
            {name: tags[name] for name in (*LINEAGE, *OPTIONAL_LINEAGE) if name in tags}
            | {name: repr(value) for name, value in metrics.items() if name.startswith("test/")}
            | {f"promotion.{check.name}": repr(check.value) for check in self.checks}
        )


def consider(run: Run, registry: Registry, params: PromoteParams, *, limits_alone: bool = False) -> Verdict:
    """Check the run against the limits, and compare it with the champion if there is one.

    If the champion was evaluated on another test split, or its predictions were deleted, they cannot be compared; this
    is a problem unless `limits_alone` is set. Raises OSError if the run's own model or predictions were deleted.
    """
    champion = registry.champion()
    problem, model = unfit(run), model_of(run)
    if problem or model is None:
        return Verdict(run, champion, problem=problem or "its model is not in MLflow, or was deleted there")
    tags = upgraded_tags(run.data.tags)
    champion_tags = upgraded_tags(registry.version(champion).tags) if champion else {}
    same_images = champion_tags.get(TEST_TAG) == tags[TEST_TAG]
    if same_images and champion_tags.get(WEIGHTS_TAG) == tags[WEIGHTS_TAG]:
        return Verdict(run, champion, already=True)
    print(f"timing the model on {WARM_UP + TIMED} images, one by one on one thread", file=sys.stderr, flush=True)
    with TemporaryDirectory() as folder:
        files = mlflow.artifacts.download_artifacts(f"{model.artifact_location}/{LOGGED}", dst_path=folder)
        checks = limits(run.data.metrics, median_latency_ms(Path(files), tags[WEIGHTS_TAG]), params)
    if champion is None:
        return Verdict(run, champion, model.model_id, checks)
    if not same_images:
        problem = (
            f"its test split (SHA-256 {tags[TEST_TAG]}) is not that of the champion, version {champion} "
            f"({champion_tags.get(TEST_TAG, 'not recorded')})"
        )
    elif (theirs := predictions_of(champion, registry)) is None:
        problem = f"the predictions of the champion, version {champion}, are gone with its run"
    else:
        checks.append(comparison(predictions(run), theirs, champion, params.significance))
    if problem:
        problem += ", so they cannot be compared: --limits-alone checks only the limits"
    return Verdict(run, champion, model.model_id, checks, None if limits_alone else problem)


def unfit(run: Run) -> str | None:
    """Why a run cannot be checked; None if it can."""
    tags, status = upgraded_tags(run.data.tags), run.info.status
    if SEED_TAG in tags:
        return f"it is one seed of run {tags.get(PARENT_TAG)}, which has the model: promote that one"
    if WEIGHTS_TAG not in tags and is_sweep(run):
        return f"it {SWEEP} promote"
    if status == "RUNNING":
        return "it is RUNNING, allowed is FINISHED (classifier sync records the rest of a run that has ended)"
    if status != "FINISHED":
        error = next(iter(tags.get(ERROR_TAG, "").splitlines()), "")[:300]
        return f"it is {status}, allowed is FINISHED" + (f" ({error})" if error else "")
    if tags.get(EVALUATED_TAG) != "true":
        return "it was not evaluated: dvc repro evaluates what was trained"
    if COMMIT_TAG not in tags and PROBLEM_TAG in tags:
        return f"it does not record its commit: {tags[PROBLEM_TAG]}"
    if DIRTY_TAG not in tags and PROBLEM_TAG in tags:
        return f"it does not record what was changed since its commit: {tags[PROBLEM_TAG]}"
    if missing := [f"{what} (tag {name})" for name, what in LINEAGE.items() if name not in tags]:
        return f"it does not record {', '.join(missing)}"
    return None


def model_of(run: Run) -> LoggedModel | None:
    """The run's logged model, None if there is none or its upload is incomplete."""
    query = f"source_run_id = '{run.info.run_id}'"
    found = mlflow.search_logged_models([run.info.experiment_id], query, output_format="list")
    return next((model for model in found if model.status == LoggedModelStatus.READY), None)


def predictions_of(version: str, registry: Registry) -> pd.DataFrame | None:
    """The predictions of a version's run; None if they were deleted."""
    try:
        return predictions(run) if (run := registry.run_of(version)) else None
    except FileNotFoundError:
        return None


def limits(metrics: Mapping[str, float], latency_ms: float, params: PromoteParams) -> list[Check]:
    """The checks that do not involve the champion. A metric that is missing or NaN fails its check."""
    accuracy = metrics.get("test/accuracy_low", math.nan)
    error = metrics.get("test/expected_calibration_error", math.nan)
    return [
        _limit("accuracy_low", "the lower bound of its test accuracy", accuracy, least=params.min_accuracy_low),
        _limit("calibration_error", "its expected calibration error", error, most=params.max_calibration_error),
        _limit("latency_ms", "its latency for one image in ms", latency_ms, most=params.max_latency_ms),
    ]


def _limit(name: str, meaning: str, value: float, *, least: float = -math.inf, most: float = math.inf) -> Check:
    allowed = f"at least {least:g}" if most == math.inf else f"at most {most:g}"
    return Check(name, meaning, value, allowed, least <= value <= most)


def comparison(ours: pd.DataFrame, theirs: pd.DataFrame, champion: str, level: float) -> Check:
    """McNemar's exact test on the predictions of both. Fails if ours are worse with a p-value below `level`."""
    alone = paired(ours, theirs)
    worse = alone.second_alone > alone.first_alone
    meaning = (
        f"it is worse than the champion, version {champion} ({alone.second_alone} images only the champion predicts "
        f"correctly, {alone.first_alone} only this run): McNemar's p-value"
    )
    allowed = f"at least {level:g}, or better than version {champion}"
    return Check("mcnemar_p", meaning, alone.p, allowed, not worse or alone.p >= level)


def median_latency_ms(folder: Path, weights: str) -> float:
    """Median latency of a single image, from pixels to logits, with a model directory, on one thread of this CPU.

    Raises UserError if the directory does not contain the weights with this SHA-256.
    """
    import torch  # takes 2 s; --help and --rollback do not need it

    from classifier.networks.model_dir import read_model, read_model_meta

    meta = read_model_meta(folder)
    if meta.weights_sha256 != weights:
        raise UserError(f"the run's model has weights {meta.weights_sha256}, but weights {weights} were evaluated")
    classifier, threads = read_model(folder), torch.get_num_threads()
    image = torch.zeros((1, meta.channels, meta.size, meta.size), dtype=torch.uint8)
    seconds = []
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            for _ in range(WARM_UP + TIMED):
                start = time.perf_counter()
                classifier(image)
                seconds.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return 1000 * statistics.median(seconds[WARM_UP:])


def releasing(run: Run, version: str, registered: str) -> list[str]:
    """Commands that release a version of the `registered` model under a git tag, for `dvc artifacts get`.

    The tag is for the first commit whose dvc.lock contains the model; the run's own commit is older than its model.
    Raises UserError, which says what is missing, if the current branch has no such commit, or if DVC would not find
    the tag.
    """
    root, digest = project_root(), run.data.tags[MODEL_TAG]
    if not (found := git_line(root, "log", "--reverse", "--format=%h", "-S", digest, "--", "dvc.lock").split()):
        raise UserError("commit the dvc.lock that holds this model, then run this command again")
    tag = f"{_artifact(root)}@v{version}.0.0"
    message = f"Version {version} of {registered}, MLflow run {run.info.run_id}"
    return [f'git tag -a {tag} -m "{message}" {found[0]}', "dvc push --all-tags", f"git push origin {tag}"]


def _artifact(root: Path) -> str:
    """The name of the model's artifact in git tags, whatever its name in MLflow's registry.

    It is a key of `artifacts` in dvc.yaml, prefixed by DVC with the project's folder in the repository. DVC does not
    find tags with characters other than those allowed here.
    """
    try:
        artifacts = (YAML(typ="safe", pure=True).load(root / "dvc.yaml") or {}).get("artifacts") or {}
    except YAMLError:
        raise UserError("correct dvc.yaml, which is not YAML: git diff dvc.yaml") from None
    name = next((name for name, artifact in artifacts.items() if artifact.get("path") == MODEL.as_posix()), None)
    if name is None:
        raise UserError(f"name the model in dvc.yaml: an entry of artifacts with the path {MODEL}")
    artifact = Repository.of(root).artifact(name)
    if not re.fullmatch("[a-zA-Z0-9-_./=]+", artifact):
        raise UserError(
            f"rename the folder or the artifact in {artifact}: DVC reads git tags of a-z, A-Z, 0-9, - _ . /"
        )
    return artifact
