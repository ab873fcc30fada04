"""The versions on which this project relies on more than is documented, and what a failing test says of others."""

from importlib.metadata import version

TRIED = {"torch": "2.14.1", "mlflow": "3.17.2", "dvc": "3.67.1"}


def changed(package: str, what: str) -> str:
    """The message of a failure: which version changed what."""
    return f"{package} {version(package)} changed {what}; {TRIED[package]} had what this project relies on"
