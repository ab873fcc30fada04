"""The view that the UI opens: MLflow keeps it as a tag of the experiment, by whose key the page finds it."""

import json

import mlflow
import pytest

from classifier.tracking.connection import open_store
from classifier.tracking.view import differing, page, save_view
from tests.results import record

pytestmark = pytest.mark.usefixtures("workspace")


def test_the_page_opens_the_view_that_is_saved():
    record(0, params={"train.learning_rate": "0.1"})
    record(1, params={"train.learning_rate": "0.2"})
    experiment = open_store()
    save_view(experiment)
    key = page(experiment).partition("viewStateShareKey=")[2]
    view = json.loads(mlflow.get_experiment(experiment).tags[f"mlflow.sharedViewState.{key}"])
    shown = [chart["metricKey"] for chart in view["compareRunCharts"]]
    assert shown[:3] == ["train/running_loss", "validation/accuracy", "test/accuracy"]
    assert {chart["metricSectionId"] for chart in view["compareRunCharts"]} == {view["compareRunSections"][0]["uuid"]}
    assert view["selectedColumns"][-1] == "params.`train.learning_rate`"
    assert "params.`train.seed`" not in view["selectedColumns"]


def test_params_that_are_equal_everywhere_are_no_columns():
    record(0), record(1, params={"train.epochs": "7"})
    assert differing(mlflow.search_runs([open_store()], output_format="list")) == ["train.epochs"]
