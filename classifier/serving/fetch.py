"""Finds the ONNX file of a model, and exports the model if there is none.

    python -m classifier.serving.fetch REFERENCE [--watch]

Prints a line of JSON with the file's path. With --watch it prints another line whenever the reference resolves to
another model, until its standard input is closed. The server runs it in a separate process, because it imports mlflow,
and torch for an export.
"""

from __future__ import annotations

import json
import os
import select
import sys
from pathlib import Path

from classifier.errors import UserError
from classifier.project.cli import run
from classifier.project.files import write_atomic
from classifier.serving.references import here, kept_onnx
from classifier.tracking.errors import reported

POLL_S = 2.0  # between resolutions of the reference


def main(arguments: list[str]) -> None:
    reference, watch = arguments[0], "--watch" in arguments
    told: str | None = None
    complaint = ""
    while True:
        try:
            found = identity(reference)
            if found != told:
                print(json.dumps({"path": str(bring(reference))}), flush=True)
                told = found
            complaint = ""
        except (UserError, OSError) as error:
            if told is None:
                raise
            if str(error) != complaint:
                complaint = str(error)
                print(f"serve: {complaint}; still serving the previous model", file=sys.stderr, flush=True)
        if not watch or select.select([sys.stdin], [], [], POLL_S)[0]:
            return


def identity(reference: str) -> str:
    """A text that changes when the reference resolves to another model."""
    if Path(reference).is_dir():
        return kept_onnx(Path(reference)).name
    from classifier.serving.stored import logged_model  # slow: mlflow
    from classifier.tracking.connection import open_store

    with reported():
        return str(logged_model(reference, open_store()).model_id)


def bring(reference: str) -> Path:
    """The path of the ONNX file of a reference; downloads or exports it if needed."""
    if found := here(reference):
        return found
    from classifier.serving.stored import attached, find

    with reported():
        source = find(reference)
        path = kept_onnx(source.folder)
        if path.is_file():
            return path
        content = attached(source.model) if source.model else None
        if content is None:
            print("the model has no ONNX file yet: exporting it, once", file=sys.stderr, flush=True)
            from classifier.serving.export import exported  # slow: torch

            content = exported(source)
        if source.run is None:
            print("no run in MLflow has these weights, so their origin is unknown: classifier record", file=sys.stderr)
            path = path.with_name(f"without-run-{os.getppid()}.onnx")
        write_atomic(path, content)
        return path


if __name__ == "__main__":
    run(main, "serve")
