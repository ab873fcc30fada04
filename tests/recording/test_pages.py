"""Where a run is shown: on a server, in the running UI, or after `make ui`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from classifier.recording.pages import UI, note_ui, page_of, ui_address
from tests.samples import ROOT

pytestmark = pytest.mark.usefixtures("workspace")


def test_without_a_ui_the_page_says_how_to_get_there():
    assert page_of("1", "abc") == "make ui, then #/experiments/1/runs/abc"


def test_a_server_has_the_page_and_its_password_is_not_shown(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@runs.example.org/")
    assert page_of("3", "abc") == "https://runs.example.org/#/experiments/3/runs/abc?workflowType=machine_learning"


def test_the_running_ui_has_the_page_until_it_ends():
    code = (
        "import sys; from classifier.recording.pages import note_ui; note_ui('http://127.0.0.1:5003'); sys.stdin.read()"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, env=environment)
    while not UI.exists():
        assert process.poll() is None
    assert page_of("1", "abc") == "http://127.0.0.1:5003/#/experiments/1/runs/abc?workflowType=machine_learning"
    process.communicate()
    assert ui_address() is None


def test_a_note_of_another_machine_does_not_count():
    note_ui("http://127.0.0.1:5000")
    assert ui_address() == "http://127.0.0.1:5000"
    Path(UI).write_text(f"elsewhere{Path(UI).read_text()}")
    assert ui_address() is None
