"""Where the stages' outputs are, from the project's root, for commands: stages get their paths from dvc.yaml.

`tests/repository/test_outputs.py` compares them with dvc.yaml.
"""

from __future__ import annotations

from pathlib import Path

DATA = Path("data/normalized")
MODEL = Path("models/classifier")
TRAINING = Path("reports/train")
EVALUATION = Path("reports/evaluate")
