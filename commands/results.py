"""Say how good the model in the workspace is, where everything lies, and how to look at it.

Example: python -m commands.results
"""

from __future__ import annotations

import json
from pathlib import Path

from classifier.cli import paths, run
from classifier.model_dir import read_model_meta

MODEL, REPORTS = Path("models/classifier"), Path("reports/evaluate")


def main(arguments: list[str]) -> None:
    paths(arguments)
    meta = read_model_meta(MODEL)
    file = REPORTS / "metrics.json"
    if not file.exists():
        raise FileNotFoundError(f"{file} does not exist: run dvc repro")
    metrics = json.loads(file.read_text(encoding="utf-8"))
    low, high = metrics["accuracy_low"], metrics["accuracy_high"]
    print(f"""
test accuracy  {metrics["accuracy"]:.2%} on {meta.dataset} (95% interval {low:.2%} to {high:.2%}, {metrics["n"]} images)
model          {MODEL}/
reports        reports/train/ and {REPORTS}/, pictures among them
runs           make ui, then open http://127.0.0.1:5000""")


if __name__ == "__main__":
    run(main)
