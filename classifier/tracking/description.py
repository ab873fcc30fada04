"""A run's name, and its description on MLflow's page, in Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping

from mlflow.entities import Run

from classifier.data.dataset import SPLITS
from classifier.params import data_name, upgraded
from classifier.recording.pages import run_path
from classifier.recording.tags import (
    COMMIT_TAG,
    DATA_TAG,
    DIRTY_TAG,
    ENVIRONMENT,
    ERROR_TAG,
    EXPERIMENT_TAG,
    PROBLEM_TAG,
    WEIGHTS_TAG,
    upgraded_tags,
)

ACCURACY = ("test/accuracy_mean", "test/accuracy")  # the mean over several seeds has precedence


def subject_of(run: Run) -> str:
    """The data set and the network: `digits lenet5`."""
    params = upgraded(run.data.params)
    dataset, folder, address = (params.get(f"download.{name}", "") for name in ("dataset", "folder", "address"))
    dataset = data_name(dataset, folder, address if address != "None" else None)
    return f"{dataset} {params.get('train.network', 'lenet5')}"


def title_of(run: Run) -> str:
    """The subject, and the test accuracy once it is known: `digits lenet5 98.9%`."""
    known = [run.data.metrics[name] for name in ACCURACY if name in run.data.metrics]
    return " ".join([subject_of(run), *(f"{accuracy:.1%}" for accuracy in known[:1])])


def description_of(run: Run) -> str:
    """A paragraph on the training and its accuracy, and a table with data, code, machine and commands."""
    rows = {name: text for name, text in _table(run).items() if text}
    lines = [_story(run), "", "| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows.items())]
    return "\n".join(lines) + "\n"


def _story(run: Run) -> str:
    params, metrics = upgraded(run.data.params), run.data.metrics
    dataset, network = subject_of(run).rsplit(" ", 1)
    epochs, seeds, seed = (params.get(f"train.{name}", "?") for name in ("epochs", "seeds", "seed"))
    who = f"seed {seed}" if seeds == "1" else f"{seeds} seeds from {seed}"
    told = f"**{network}** trained on **{dataset}** for {epochs} epochs, {who}."
    if error := upgraded_tags(run.data.tags).get(ERROR_TAG):
        return f"{told} It did not finish: {' '.join(error.split())[:300]}"
    if "test/accuracy" not in metrics:
        return f"{told} It has not been evaluated on the test split yet."
    if "test/accuracy_mean" in metrics:
        low, high = metrics["test/accuracy_mean_low"], metrics["test/accuracy_mean_high"]
        told += f" Mean test accuracy **{metrics['test/accuracy_mean']:.2%}** (95% interval {low:.2%} to {high:.2%});"
        return f"{told} the stored model is the median seed on validation, with {metrics['test/accuracy']:.2%}."
    known = "test/accuracy_low" in metrics
    interval = f" ({metrics['test/accuracy_low']:.2%} to {metrics['test/accuracy_high']:.2%})" if known else ""
    return f"{told} Test accuracy **{metrics['test/accuracy']:.2%}**{interval}."


def _table(run: Run) -> dict[str, str]:
    tags, metrics, run_id = upgraded_tags(run.data.tags), run.data.metrics, run.info.run_id
    data = [each.dataset for each in run.inputs.dataset_inputs[:1]] if run.inputs else []
    sizes = ", ".join(f"{count:,} {split}" for split, count in _sizes(data[0].profile)) if data else ""
    changes = {"true": ", with uncommitted changes (artifact `code/uncommitted.diff`)", "false": ", no changes"}
    dirty = changes.get(tags.get(DIRTY_TAG, ""), ", uncommitted changes unknown")
    machine = [tags.get(f"{ENVIRONMENT}{name}") for name in ("device", "cpu", "arithmetic")]
    torch, accuracy = tags.get(f"{ENVIRONMENT}torch"), metrics.get("validation/accuracy")
    return {
        "experiment": f"`dvc exp apply {tags[EXPERIMENT_TAG]}`" if EXPERIMENT_TAG in tags else "",
        "network": _costs(metrics),
        "data": f"{sizes} images; version `{tags[DATA_TAG]}`" if DATA_TAG in tags else "",
        "validation": f"{accuracy:.2%}" if accuracy is not None else "",
        "code": f"commit `{tags[COMMIT_TAG][:10]}`{dirty}" if COMMIT_TAG in tags else tags.get(PROBLEM_TAG, ""),
        "weights": f"SHA-256 `{tags[WEIGHTS_TAG]}`" if WEIGHTS_TAG in tags else "",
        "machine": ", ".join([*filter(None, machine), *([f"torch {torch}"] if torch else [])]),
        "reproduce": f"`classifier reproduce {run_id[:8]}`",
        "promote": f"`classifier promote {run_id[:8]}`",
        "report": "artifact `evaluate/report.html`; `train/` has the curves",
        "this page": f"`{run_path(run.info.experiment_id, run_id)}`",
    }


def _costs(metrics: Mapping[str, float]) -> str:
    """The network's size and operations; empty for a run of an earlier version."""
    names = ("parameters", "multiply_adds", "weights_bytes")
    found = [metrics.get(f"network/{name}") for name in names]
    if None in found:
        return ""
    parameters, multiply_adds, size = (int(value or 0) for value in found)
    return (
        f"{parameters:,} parameters ({size / 1e6:,.1f} MB), {multiply_adds:,} multiply-adds for an image; "
        "layers in the artifact `train/layers.csv`"
    )


def _sizes(profile: str | None) -> list[tuple[str, int]]:
    """The number of images in each split, from the data set's profile, in the order of SPLITS."""
    try:
        found = dict(json.loads(profile or "{}"))
    except ValueError:
        return []
    return [(split, found[split]) for split in SPLITS if split in found]
