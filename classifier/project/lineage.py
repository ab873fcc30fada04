"""The project, the user and DVC's experiment that a process belongs to."""

from __future__ import annotations

import getpass
import os
from pathlib import Path

from classifier.errors import UserError

PACKAGE = Path(__file__).parents[1]  # the library's folder, with all of its code
PROJECT_FILES = ("dvc.yaml", "params.yaml")  # in a project's root


def project_root() -> Path:
    """The root of the project that runs belong to.

    Sweeps, whose experiments run in clones, set it in PIPELINE_ROOT. DVC sets it in DVC_ROOT, also for experiments in a
    temporary folder. Otherwise it is the project that contains the current folder or, outside a project, the current
    folder.
    """
    return named_root() or find_root(Path.cwd()) or Path.cwd()


def named_root() -> Path | None:
    """The project's root according to the environment."""
    root = os.environ.get("PIPELINE_ROOT") or os.environ.get("DVC_ROOT")
    return Path(root).resolve() if root else None


def find_root(start: Path) -> Path | None:
    """The project that contains `start`: like DVC, the nearest folder upwards with `.dvc`.

    Without one, the nearest folder with `dvc.yaml` and `params.yaml`; None if there is neither.
    """
    return _nearest(start, ".dvc") or _nearest(start, *PROJECT_FILES)


def command_folder() -> Path:
    """The folder in which commands run: the nearest upwards with `dvc.yaml` and `params.yaml`, or the project root.

    Raises UserError outside a project.
    """
    here = Path.cwd()
    folder = _nearest(here, *PROJECT_FILES) or _nearest(here, ".dvc") or named_root()
    if folder is None:
        raise UserError(
            f"{here} is not in a project: neither it nor a folder above it has .dvc, or dvc.yaml and params.yaml"
        )
    return folder


def _nearest(start: Path, *names: str) -> Path | None:
    folders = (start, *start.parents)
    return next((folder for folder in folders if all((folder / name).exists() for name in names)), None)


def user_name() -> str:
    """The user's name, or the numeric id if it has no name, as in some containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # OSError since Python 3.13
        return str(os.getuid())
