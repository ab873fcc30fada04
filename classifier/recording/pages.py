"""Addresses of pages in MLflow's UI, on a tracking server or in the UI started by `classifier ui`."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from classifier.project.files import write_atomic
from classifier.project.lineage import project_root
from classifier.project.ownership import is_running, mark
from classifier.recording.store import shown_uri

UI = Path(".pipeline/ui")  # in the project's root: which process is the UI, and its address
WORKFLOW = "workflowType=machine_learning"  # MLflow's menu for training, not that for language models


def run_path(experiment: str, run: str) -> str:
    """A run's page, relative to the UI's address."""
    return f"#/experiments/{experiment}/runs/{run}"


def page_of(experiment: str, run: str) -> str:
    """A run's full address if a server or a UI is running, otherwise how to get there."""
    if base := ui_address():
        return f"{base}/{run_path(experiment, run)}?{WORKFLOW}"
    return f"make ui, then {run_path(experiment, run)}"


def ui_address() -> str | None:
    """The address of the tracking server or of the running UI, or None."""
    if (uri := shown_uri()).startswith("http"):
        return uri
    with suppress(OSError, ValueError):
        owner, address = (project_root() / UI).read_text(encoding="utf-8").split()
        if is_running(owner):
            return address
    return None


def note_ui(address: str) -> None:
    """Note that this process, or the program that replaces it, serves the UI at `address`."""
    write_atomic(project_root() / UI, f"{mark()} {address}".encode())
