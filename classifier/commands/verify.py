"""Run the committed pipeline again and compare its bytes with the committed dvc.lock."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from classifier.runs.verification import Verification


def verify(as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False) -> None:
    """Check that this machine produces the published bytes.

    Runs the whole pipeline of the last commit in a temporary clone, on the CPU, and compares each output with the
    committed dvc.lock. The workspace, the cache and the recorded runs are not changed. Exit status 0: the same bytes;
    1: a stage differs, or cannot run.

    Example: classifier verify
    """
    from classifier.runs.verification import verify as verify_commit  # slow: mlflow

    found = verify_commit(Path.cwd())
    print(json.dumps(found.summary(), indent=2) if as_json else text(found))
    sys.exit(bool(found.differences))


def text(found: Verification) -> str:
    """Format the result, and what may explain a difference."""
    here = ", ".join(f"{name} {value}" for name, value in found.machine.items())
    lines = [f"this machine: {here}"]
    if found.libraries:
        others = ", ".join(f"{name} {installed} ({locked})" for name, (installed, locked) in found.libraries.items())
        lines.append(f"versions other than in requirements.lock: {others}: make setup")
    if found.outdated:
        lines.append(f"dvc.lock was made before {', '.join(found.outdated)} changed: dvc repro, then commit dvc.lock")
    if not found.differences:
        names = ", ".join(each.path for each in found.outputs)
        return "\n".join([f"commit {found.commit[:8]}: the same bytes as published: {names}", *lines])
    first = found.differences[0]
    rows = [f"  {each.path}: {each.made}, published {each.published}" for each in found.differences]
    return "\n".join([f"commit {found.commit[:8]}: stage {first.stage} is the first that differs:", *rows, *lines])
