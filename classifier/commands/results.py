"""Show the trained model's accuracy, its files, its run, and what to type next."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from classifier.errors import UserError
from classifier.repository.outputs import EVALUATION, MODEL, TRAINING


@dataclass(frozen=True)
class Found:
    """The run that has the workspace's model."""

    name: str
    id: str
    page: str


def results(
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Show the trained model's accuracy, its files and its run.

    Example: classifier results
    """
    meta, metrics = _read(MODEL / "meta.json", "train"), _read(EVALUATION / "metrics.json", "evaluate")
    metrics = {name.removeprefix("test/"): value for name, value in metrics.items()}
    about = EVALUATION / "summary.json"
    summary = _read(about, "evaluate") if about.exists() else {}  # earlier versions wrote it among the metrics
    run, problem = _find_run(str(meta.get("weights_sha256")))
    try:
        images = summary["images"]["test"] if summary else metrics["n"]
        level = summary.get("confidence") or metrics["confidence"]
        dataset = summary.get("dataset", meta["dataset"])  # the name for display
        said = text(metrics, meta, dataset, images, level)
    except (KeyError, TypeError) as error:
        raise UserError(f"{EVALUATION} is corrupt ({error}): run dvc repro -f evaluate") from None
    if as_json:
        found = {"dataset": dataset, "seed": meta["seed"], "images": images, "confidence": level}
        found |= {"model": str(MODEL), "metrics": metrics, "run": asdict(run) if run else None}
        print(json.dumps(found, indent=2))
    else:
        print("\n".join(["", said, *ending(run, problem)]))


def _read(file: Path, stage: str) -> dict[str, Any]:
    """Read a JSON file. The model directory's own reader would import torch."""
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise FileNotFoundError(f"{file} does not exist: run dvc repro") from None
    except ValueError as error:
        raise UserError(f"{file} is corrupt ({error}): run dvc repro -f {stage}") from None


def _find_run(weights: str) -> tuple[Found | None, str]:
    """Return the newest run with these weights, or None and the reason."""
    from classifier.recording.pages import page_of
    from classifier.recording.tags import WEIGHTS_TAG
    from classifier.tracking.connection import open_store, runs_with_tag  # slow: mlflow
    from classifier.tracking.errors import reported

    try:
        with reported():
            experiment = open_store()
            if runs := runs_with_tag(experiment, WEIGHTS_TAG, weights):
                info = runs[0].info
                return Found(info.run_name, info.run_id, page_of(experiment, info.run_id)), ""
    except (UserError, OSError) as error:
        return None, str(error)
    return None, "no run has these weights: classifier record makes one"


def text(metrics: dict[str, float], meta: dict[str, Any], dataset: str, images: int, level: float) -> str:
    """Format the test accuracy and its interval; for several seeds, their mean comes first."""
    low, high = metrics["accuracy_low"], metrics["accuracy_high"]
    interval = f"({100 * level:g}% interval {low:.2%} to {high:.2%}, {images} images)"
    if "accuracy_mean" not in metrics:
        return _row("test accuracy", f"{metrics['accuracy']:.2%} on {dataset} {interval}")
    mean, low, high = (metrics[f"accuracy_mean{end}"] for end in ("", "_low", "_high"))
    return "\n".join(
        [
            _row("test accuracy", f"{mean:.2%} on {dataset}, the mean of {len(meta['replicas'])} seeds"),
            _row("", f"(95% interval of the mean {low:.2%} to {high:.2%})"),
            _row("the model", f"is seed {meta['seed']}, the median on validation: {metrics['accuracy']:.2%}"),
            _row("", interval),
        ]
    )


def ending(run: Found | None, problem: str) -> list[str]:
    """Return the lines that say where the outputs are, and what to type next."""
    page = EVALUATION / "report.html"
    return [
        _row("model", f"{MODEL}/"),
        _row("reports", f"{TRAINING}/ and {EVALUATION}/, with pictures"),
        *([_row("run", f"{run.name}, id {run.id[:8]}"), f"  {run.page}"] if run else [_row("run", problem)]),
        "next",
        "  classifier predict IMAGE ...    use the model",
        "  dvc repro                       after a change of params.yaml",
        "  classifier leaderboard          all runs, ranked",
        "  classifier promote latest       make this model the champion",
        *([_row("on one page", page.absolute().as_uri())] if page.exists() else []),  # earlier versions wrote none
    ]


def _row(name: str, value: str) -> str:
    return f"{name:15}{value}"
