"""The gate before @champion: what a run must have, reach and not fall behind, with a reason for each "no"."""

from __future__ import annotations

import math
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow
import pandas as pd
from mlflow.entities import LoggedModel, LoggedModelStatus, Run

from classifier.data.dataset import SIZE
from classifier.errors import UserError
from classifier.params import PromoteParams
from classifier.runs.reading import PARENT_TAG, SWEEP, TEST_TAG, is_sweep, predictions
from classifier.runs.registry import CHAMPION, Registry
from classifier.runs.significance import paired
from classifier.tracking.delivery import EVALUATED_TAG, SEED_TAG, WEIGHTS_TAG

LINEAGE = {  # tags that every version carries, and what they say
    "git.commit": "the commit that made it",
    "dvc.data": "DVC's hash of the data",
    "dvc.model": "DVC's hash of the model",
    WEIGHTS_TAG: "the hash of its weights",
    TEST_TAG: "which test split it was evaluated on",
}
OPTIONAL_LINEAGE = ("git.dirty", "dvc.exp.name", "dvc.exp.baseline")
MODEL = "data/classifier"  # the model directory in what MLflow logged
WARM_UP, TIMED = 20, 200  # single images


@dataclass(frozen=True)
class Check:
    """One gate: a value, what params.yaml allows, and whether it passed."""

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
    """What the gate says of a run. Nothing was changed yet."""

    run: Run
    champion: str | None  # the version that is @champion
    model_id: str = ""  # of the run's logged model
    checks: Sequence[Check] = ()
    problem: str | None = None  # why it cannot be measured or compared at all
    already: bool = False  # the champion has these weights, evaluated on the same images

    @property
    def reasons(self) -> list[str]:
        """Why the run may not become the champion; empty when it may."""
        return [*filter(None, [self.problem]), *(check.reason for check in self.checks if not check.passed)]

    @property
    def tags(self) -> dict[str, str]:
        """What its version will carry: lineage, every test metric, and what the gate measured."""
        tags, metrics = self.run.data.tags, self.run.data.metrics
        return (
            {name: tags[name] for name in (*LINEAGE, *OPTIONAL_LINEAGE) if name in tags}
            | {name: repr(value) for name, value in metrics.items() if name.startswith("test/")}
            | {f"promotion.{check.name}": repr(check.value) for check in self.checks}
            | {"promotion.judged_against": self.champion or "none"}
        )


def consider(run: Run, registry: Registry, params: PromoteParams, *, limits_alone: bool = False) -> Verdict:
    """Measure the run against the limits, and compare it with the champion where there is one.

    A champion that it cannot be compared with, evaluated on another test split or without predictions by now, is a
    problem, unless `limits_alone` is allowed to suffice. OSError when the run's own model or predictions are gone.
    """
    champion = registry.aliases().get(CHAMPION)
    problem, model = unfit(run), model_of(run)
    if problem or model is None:
        return Verdict(run, champion, problem=problem or "its model is not in MLflow, or was deleted there")
    tags, champion_tags = run.data.tags, registry.version(champion).tags if champion else {}
    same_images = champion_tags.get(TEST_TAG) == tags[TEST_TAG]
    if same_images and champion_tags.get(WEIGHTS_TAG) == tags[WEIGHTS_TAG]:
        return Verdict(run, champion, already=True)
    with TemporaryDirectory() as folder:
        files = mlflow.artifacts.download_artifacts(f"{model.artifact_location}/{MODEL}", dst_path=folder)
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
        problem += ", so they cannot be compared: --limits-alone goes by the limits without it"
    return Verdict(run, champion, model.model_id, checks, None if limits_alone else problem)


def unfit(run: Run) -> str | None:
    """Why a run cannot be considered at all; None when it can."""
    tags, status = run.data.tags, run.info.status
    if SEED_TAG in tags:
        return f"it is one replica of run {tags.get(PARENT_TAG)}, which has the model: promote that one"
    if WEIGHTS_TAG not in tags and is_sweep(run):
        return f"it {SWEEP} promote"
    if status == "RUNNING":
        return "it is RUNNING, allowed is FINISHED (classifier sync delivers what still waits of a run that is over)"
    if status != "FINISHED":
        error = next(iter(tags.get("error", "").splitlines()), "")[:300]
        return f"it is {status}, allowed is FINISHED" + (f" ({error})" if error else "")
    if tags.get(EVALUATED_TAG) != "true":
        return "it was not evaluated: dvc repro evaluates what was trained"
    if missing := [f"{what} (tag {name})" for name, what in LINEAGE.items() if name not in tags]:
        return f"it does not say {', '.join(missing)}"
    return None


def model_of(run: Run) -> LoggedModel | None:
    """What MLflow logged as the run's model; one that was broken off does not count."""
    query = f"source_run_id = '{run.info.run_id}'"
    found = mlflow.search_logged_models([run.info.experiment_id], query, output_format="list")
    return next((model for model in found if model.status == LoggedModelStatus.READY), None)


def predictions_of(version: str, registry: Registry) -> pd.DataFrame | None:
    """The predictions of the run that made a version; None when they are gone."""
    try:
        return predictions(run) if (run := registry.run_of(version)) else None
    except FileNotFoundError:
        return None


def limits(metrics: Mapping[str, float], latency_ms: float, params: PromoteParams) -> list[Check]:
    """The gates that need no champion. A metric that is missing or NaN passes none."""
    accuracy = metrics.get("test/accuracy_low", math.nan)
    error = metrics.get("test/expected_calibration_error", math.nan)
    return [
        _limit("accuracy_low", "the lower bound of its test accuracy", accuracy, least=params.min_accuracy_low),
        _limit("calibration_error", "its expected calibration error", error, most=params.max_calibration_error),
        _limit("latency_ms", "its time for one image in ms", latency_ms, most=params.max_latency_ms),
    ]


def _limit(name: str, meaning: str, value: float, *, least: float = -math.inf, most: float = math.inf) -> Check:
    allowed = f"at least {least:g}" if most == math.inf else f"at most {most:g}"
    return Check(name, meaning, value, allowed, least <= value <= most)


def comparison(ours: pd.DataFrame, theirs: pd.DataFrame, champion: str, level: float) -> Check:
    """McNemar's exact test on the predictions of both: fails where ours is worse with a p-value below `level`."""
    alone = paired(ours, theirs)
    worse = alone.second_alone > alone.first_alone
    meaning = (
        f"it is worse than the champion, version {champion} ({alone.second_alone} images right there alone, "
        f"{alone.first_alone} here alone): McNemar's p-value"
    )
    allowed = f"at least {level:g}, or better than version {champion}"
    return Check("mcnemar_p", meaning, alone.p, allowed, not worse or alone.p >= level)


def median_latency_ms(folder: Path, weights: str) -> float:
    """Median milliseconds of one image alone through the model directory, pixels to logits, on one thread of this CPU.

    UserError when it does not hold the weights with this SHA-256.
    """
    import torch  # takes 2 s, which --help and --rollback need not wait for

    from classifier.networks.model_dir import read_model, read_model_meta

    meta = read_model_meta(folder)
    if meta.weights_sha256 != weights:
        raise UserError(f"the run's model has weights {meta.weights_sha256}, evaluated were {weights}")
    classifier, threads = read_model(folder), torch.get_num_threads()
    image = torch.zeros((1, meta.channels, SIZE, SIZE), dtype=torch.uint8)
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


def releasing(run: Run, model: str, version: str) -> list[str]:
    """Commands that hand a version on under the tag `<model>@v<version>.0.0`, as DVC and GTO read it.

    The tag goes to the first commit whose dvc.lock holds the model: the run's own commit was there before the model.
    Empty when the current branch has no such commit, or when there is no git to ask.
    """
    digest = run.data.tags["dvc.model"]
    search = ["git", "log", "--reverse", "--format=%h", "-S", digest, "--", "dvc.lock"]
    try:
        found = subprocess.run(search, capture_output=True, text=True).stdout.split()  # noqa: S603, nothing of a person's
    except FileNotFoundError:
        return []
    if not found:
        return []
    tag, message = f"{model}@v{version}.0.0", f"Version {version} of {model}, MLflow run {run.info.run_id}"
    return [f'git tag -a {tag} -m "{message}" {found[0]}', "dvc push --all-tags", f"git push origin {tag}"]
