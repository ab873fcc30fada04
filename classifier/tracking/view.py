"""The view of an experiment that `classifier ui` opens: its charts, and a table of what differs between the runs.

MLflow keeps a view that a person shares as a tag of the experiment, and opens it by the key in the tag's name.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import mlflow
from mlflow.entities import Run

from classifier.params import upgraded

KEY = "classifier"  # of the view
TAG = f"mlflow.sharedViewState.{KEY}"
RUNS = 500  # the newest, whose params are compared
COLUMNS = 8  # params in the table at most
SAME = ("train.seed", "download.mirror", "download.deadline_s", "download.retries")  # params that say little
CHARTS = {  # section -> charts: title, kind, metrics, scale of the vertical axis
    "Curves": [
        ("Running loss", "LINE", ["train/running_loss"], "log"),
        ("Validation loss", "LINE", ["validation/loss"], "log"),
        ("Validation accuracy", "LINE", ["validation/accuracy"], "linear"),
    ],
    "Results": [
        ("Test accuracy", "BAR", ["test/accuracy"], "linear"),
        ("Calibration error", "BAR", ["test/expected_calibration_error"], "linear"),
        ("Training, seconds", "BAR", ["train/seconds"], "linear"),
    ],
}
METRICS = ("test/accuracy", "validation/accuracy", "train/seconds")  # columns of the table


def page(experiment: str) -> str:
    """The page with this view, below the UI's address."""
    wanted = f"workflowType=machine_learning&compareRunsMode=CHART&viewStateShareKey={KEY}"
    return f"#/experiments/{experiment}/runs?{wanted}"


def save_view(experiment: str) -> None:
    """Save the view with the params that differ now."""
    runs = mlflow.search_runs([experiment], max_results=RUNS, output_format="list")
    mlflow.MlflowClient().set_experiment_tag(experiment, TAG, json.dumps(view(runs)))


def view(runs: Sequence[Run]) -> dict[str, Any]:
    """The state of MLflow's page of an experiment."""
    columns = ["attributes.`Dataset`", *(f"metrics.`{name}`" for name in METRICS)]
    columns += [f"params.`{name}`" for name in differing(runs)]
    charts, sections = [], []
    for title, of_section in CHARTS.items():
        sections.append({"uuid": title, "name": title, "display": True, "isReordered": False, "deleted": False})
        for name, kind, metrics, scale in of_section:
            charts.append(_chart(f"{title} {name}", title, name, kind, metrics, scale))
    return {
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "selectedColumns": columns,
        "columnOrder": columns,
        "compareRunCharts": charts,
        "compareRunSections": [{**section, "isGenerated": False} for section in sections],
        "isAccordionReordered": True,
        "hideEmptyCharts": True,
        "viewMaximized": False,
        "runListHidden": False,
    }


def _chart(uuid: str, section: str, title: str, kind: str, metrics: list[str], scale: str) -> dict[str, Any]:
    chart = {
        "uuid": uuid,
        "type": kind,
        "metricSectionId": section,
        "displayName": title,
        "metricKey": metrics[0],
        "runsCountToCompare": 10,
        "deleted": False,
        "isGenerated": False,
    }
    if kind == "BAR":
        return chart
    axes = {"xAxisKey": "step", "xAxisScaleType": "linear", "scaleType": scale, "yAxisKey": "metric"}
    shared = {"useGlobalXaxisKey": True, "useGlobalLineSmoothing": True, "lineSmoothness": 0, "range": {}}
    return chart | axes | shared | {"selectedMetricKeys": metrics, "yAxisExpressions": [], "ignoreOutliers": False}


def differing(runs: Sequence[Run]) -> list[str]:
    """The params with more than one value, in the order of params.yaml; without those that say little."""
    values: dict[str, set[str]] = {}
    for run in runs:
        for name, value in upgraded(run.data.params).items():
            values.setdefault(name, set()).add(value)
    return [name for name, found in values.items() if len(found) > 1 and name not in SAME][:COLUMNS]
