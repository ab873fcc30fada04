"""A tracking server that answers, but not as it should: commands say so in one line, without its password."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from classifier.commands.application import call
from classifier.commands.sweep import show_result
from classifier.sweeps.experiments import Experiment, Outcome
from tests.loopback import send
from tests.samples import ROOT, file_params

EXPERIMENT = json.dumps({"experiment": {"experiment_id": "1", "name": "classifier"}}).encode()
RUN = "0123456789"


@pytest.fixture(params=["500", "silence"])
def server(request, workspace, serve, monkeypatch):
    """It knows the experiment, and fails whatever else it is asked."""

    def answer(asked):
        if "experiments/get-by-name" in asked.path:
            send(asked, EXPERIMENT, Content_Type="application/json")
        elif request.param == "500":
            send(asked, b"the database is locked", 500)
        else:
            server.stopped.wait(30)

    server = serve(answer)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address.replace("//", "//ann:secret@"))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    Path("params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    return server


def check(error):
    assert str(error.value).startswith("MLflow: ")
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    "arguments",
    [
        ["leaderboard"],
        ["leaderboard", "--sweep", RUN],
        ["compare", RUN, "9876543210"],
        ["promote", RUN],
        ["reproduce", RUN],
    ],
)
def test_a_command_ends_with_one_line(server, arguments):
    with pytest.raises(OSError) as error:  # noqa: PT011, the message is looked at
        call(arguments)
    check(error)


def test_a_sweep_ends_with_one_line(server):
    results = [(Experiment("sweep-1-1", {}), Outcome("finished", RUN))]
    ended = SimpleNamespace(results=results, record=SimpleNamespace(id=RUN, name="sweep-1"))
    with pytest.raises(OSError) as error:  # noqa: PT011, the message is looked at
        show_result(ended, file_params(), as_json=False)
    check(error)
