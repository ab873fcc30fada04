"""Show the accuracy of the workspace's model, where its files are, and how to view its run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from classifier.errors import UserError

MODEL, REPORTS = Path("models/classifier"), Path("reports/evaluate")


def results(
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Show the trained model's accuracy and where its files are.

    Example: classifier results
    """
    from classifier.networks.model_dir import read_model_meta  # slow: torch

    meta = read_model_meta(MODEL)
    file, about = REPORTS / "metrics.json", REPORTS / "summary.json"
    if not file.exists():
        raise FileNotFoundError(f"{file} does not exist: run dvc repro")
    try:
        metrics = json.loads(file.read_text(encoding="utf-8"))
        if about.exists():
            summary = json.loads(about.read_text(encoding="utf-8"))
            images, level = summary["images"]["test"], summary["confidence"]
        else:  # earlier versions wrote them among the metrics
            images, level = metrics["n"], metrics["confidence"]
        said = text(metrics, meta.dataset, meta.seed, images, level)
        found = {"dataset": meta.dataset, "seed": meta.seed, "images": images, "confidence": level}
        found |= {"model": str(MODEL), "metrics": metrics}
        print(json.dumps(found, indent=2) if as_json else said)
    except (json.JSONDecodeError, KeyError) as error:
        raise UserError(f"{file} is corrupt ({error}): run dvc repro -f evaluate") from None


def text(metrics: dict[str, float], dataset: str, seed: int, images: int, level: float) -> str:
    """Format accuracy, paths and the next command."""
    low, high = metrics["accuracy_low"], metrics["accuracy_high"]
    page = REPORTS / "report.html"
    lines = [
        "",
        f"test accuracy  {metrics['accuracy']:.2%} on {dataset} "
        f"({100 * level:g}% interval {low:.2%} to {high:.2%}, {images} images)",
        f"model          {MODEL}/",
        f"reports        reports/train/ and {REPORTS}/, pictures among them",
        "runs           make ui, and open the address that it prints",
        *([f"report         {page.absolute().as_uri()}"] if page.exists() else []),
    ]
    if "accuracy_mean" in metrics:
        mean, low, high = (metrics[f"accuracy_mean{end}"] for end in ("", "_low", "_high"))
        lines.insert(2, f"all seeds      {mean:.2%} on average (95% interval {low:.2%} to {high:.2%})")
        lines.insert(3, f"               the model is seed {seed}, the median on validation")
    return "\n".join(lines)
