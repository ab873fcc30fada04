"""The view of an experiment that `classifier ui` opens: charts, and a table of the params that differ between runs.

MLflow stores a shared view as a tag of the experiment, and opens it by the key in the tag's name.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import mlflow
from mlflow.entities import Run

from classifier.params import upgraded
from classifier.recording.pages import WORKFLOW

KEY = "classifier"  # of the view
TAG = f"mlflow.sharedViewState.{KEY}"
RUNS = 500  # number of newest runs whose params are compared
COLUMNS = 8  # maximum number of params in the table
SAME = ("train.seed", "download.mirror", "download.deadline_s", "download.retries")  # params of little interest
CHARTS = [  # metric, kind, scale of the vertical axis; three in a row
    ("train/running_loss", "LINE", "log"),
    ("validation/accuracy", "LINE", "linear"),
    ("test/accuracy", "BAR", "linear"),
    ("validation/loss", "LINE", "log"),
    ("test/expected_calibration_error", "BAR", "linear"),
    ("train/seconds", "BAR", "linear"),
]
SECTION = "Training and test"
METRICS = ("test/accuracy", "validation/accuracy", "train/seconds")  # columns of the table


def page(experiment: str) -> str:
    """The page with this view, relative to the UI's address."""
    wanted = f"{WORKFLOW}&compareRunsMode=CHART&viewStateShareKey={KEY}"
    return f"#/experiments/{experiment}/runs?{wanted}"


def save_view(experiment: str) -> None:
    """Save the view with the params that currently differ."""
    runs = mlflow.search_runs([experiment], max_results=RUNS, output_format="list")
    mlflow.MlflowClient().set_experiment_tag(experiment, TAG, json.dumps(view(runs)))


def view(runs: Sequence[Run]) -> dict[str, Any]:
    """The state of MLflow's page of an experiment."""
    columns = [*(f"metrics.`{name}`" for name in METRICS), *(f"params.`{name}`" for name in differing(runs))]
    section = {"uuid": SECTION, "name": SECTION, "display": True, "isReordered": False, "deleted": False}
    return {
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "selectedColumns": columns,
        "columnOrder": columns,
        "compareRunCharts": [_chart(*chart) for chart in CHARTS],
        "compareRunSections": [{**section, "isGenerated": False}],
        "isAccordionReordered": True,
        "hideEmptyCharts": True,
    }


def _chart(metric: str, kind: str, scale: str) -> dict[str, Any]:
    chart = {
        "uuid": metric,
        "type": kind,
        "metricSectionId": SECTION,
        "metricKey": metric,
        "runsCountToCompare": 10,
        "deleted": False,
        "isGenerated": False,
    }
    if kind == "BAR":
        return chart
    axes = {"xAxisKey": "step", "xAxisScaleType": "linear", "scaleType": scale, "yAxisKey": "metric"}
    shared = {"useGlobalXaxisKey": True, "useGlobalLineSmoothing": True, "lineSmoothness": 0, "range": {}}
    return chart | axes | shared | {"selectedMetricKeys": [metric], "yAxisExpressions": [], "ignoreOutliers": False}


def differing(runs: Sequence[Run]) -> list[str]:
    """The params with more than one value, in the order of params.yaml, except those in SAME."""
    values: dict[str, set[str]] = {}
    for run in runs:
        for name, value in upgraded(run.data.params).items():
            values.setdefault(name, set()).add(value)
    return [name for name, found in values.items() if len(found) > 1 and name not in SAME][:COLUMNS]
