"""How a model is named on the command line, and where its ONNX file is kept. Needs neither torch nor mlflow."""

from __future__ import annotations

from pathlib import Path

from classifier.project.files import read_file, sha256
from classifier.project.lineage import project_root

DIRECTORY = "models/classifier"  # what the pipeline writes, the default
LATEST = "latest"  # the newest run
EXPORTER = "1"  # changes with what the exporter writes, so that files of an earlier one are not taken
FORMS = "a model directory, a run's id, latest, or models:/NAME@ALIAS"


def typed(reference: str) -> str:
    """A reference as it was typed: a path is made absolute, since commands change the folder that they work in."""
    return str(Path(reference).absolute()) if Path(reference).exists() else reference


def kept_onnx(folder: Path) -> Path:
    """Where the ONNX file of a model directory is kept, whether it exists or not.

    meta.json holds the hash of the weights. Raises FileNotFoundError if there is no meta.json.
    """
    try:
        meta = read_file(folder / "meta.json", 1 << 24)
    except FileNotFoundError:
        raise FileNotFoundError(f"{folder} holds no model: dvc repro trains one") from None
    return project_root() / ".pipeline/onnx" / f"{sha256(EXPORTER.encode() + meta)[:32]}.onnx"


def here(reference: str) -> Path | None:
    """The ONNX file of a reference, if it is there without asking MLflow or PyTorch."""
    path = Path(reference)
    if path.suffix == ".onnx" and path.is_file():
        return path
    if path.is_dir() and (kept := kept_onnx(path)).is_file():
        return kept
    return None
