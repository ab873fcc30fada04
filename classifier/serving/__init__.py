"""Serving of trained models. Begin with `pyfunc`, the model that MLflow loads and serves."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from classifier.serving.pyfunc import ServedClassifier


def _load_pyfunc(folder: str) -> ServedClassifier:
    """Load a model for MLflow: every stored model names `classifier.serving` as its loader module."""
    from pathlib import Path

    from classifier.serving.pyfunc import ServedClassifier

    return ServedClassifier(Path(folder))
