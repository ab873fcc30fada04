"""A trained model at work. Begin with `pyfunc`, the model as MLflow loads and serves it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from classifier.serving.pyfunc import ServedClassifier


def _load_pyfunc(folder: str) -> ServedClassifier:
    """What MLflow calls to load a stored model, which names this package; torch is imported only then."""
    from pathlib import Path

    from classifier.serving.pyfunc import ServedClassifier

    return ServedClassifier(Path(folder))
