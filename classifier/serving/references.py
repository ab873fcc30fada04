"""References to models on the command line, and the paths of their ONNX files. Needs neither torch nor mlflow."""

from __future__ import annotations

from pathlib import Path

from classifier.project.files import read_file, sha256
from classifier.project.lineage import project_root

DIRECTORY = "models/classifier"  # what the pipeline writes, the default
LATEST = "latest"  # the newest run
EXPORTER = "1"  # version of the exporter's output; files of earlier versions are not used
FORMS = "a model directory, a run's id, latest, or models:/NAME@ALIAS"


def typed(reference: str) -> str:
    """Make a typed reference absolute if it is a path, because commands change the working folder."""
    return str(Path(reference).absolute()) if Path(reference).exists() else reference


def kept_onnx(folder: Path) -> Path:
    """The path for the ONNX file of a model directory, whether the file exists or not.

    It depends on meta.json, which contains the hash of the weights. Raises FileNotFoundError if there is no meta.json.
    """
    try:
        meta = read_file(folder / "meta.json", 1 << 24)
    except FileNotFoundError:
        raise FileNotFoundError(f"{folder} contains no model: dvc repro trains one") from None
    return project_root() / ".pipeline/onnx" / f"{sha256(EXPORTER.encode() + meta)[:32]}.onnx"


def here(reference: str) -> Path | None:
    """The ONNX file of a reference if it exists locally; does not use MLflow or PyTorch."""
    path = Path(reference)
    if path.suffix == ".onnx" and path.is_file():
        return path
    if path.is_dir() and (kept := kept_onnx(path)).is_file():
        return kept
    return None
