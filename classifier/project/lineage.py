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


def require_project() -> Path:
    """`project_root` for commands. Raises UserError outside a project, and like `check_place`."""
    here = Path.cwd()
    check_place(here)
    root = named_root() or find_root(here)
    if root is None:
        raise UserError(
            f"{here} is not in a project: neither it nor a folder above it has .dvc, or dvc.yaml and params.yaml"
        )
    return root


def check_place(start: Path) -> None:
    """Raises UserError if the pipeline that contains `start` is in a subfolder of the folder with `.dvc`.

    DVC would run it there, but the runs, the cache and the repository's paths belong to the folder with `.dvc`.
    """
    root, pipeline = _nearest(start, ".dvc"), _nearest(start, *PROJECT_FILES)
    if root and pipeline and root in pipeline.parents:
        raise UserError(f"dvc.yaml must be in the folder that has .dvc: run dvc init --subdir in {pipeline}")


def _nearest(start: Path, *names: str) -> Path | None:
    folders = (start, *start.parents)
    return next((folder for folder in folders if all((folder / name).exists() for name in names)), None)


def user_name() -> str:
    """The user's name, or the numeric id if it has no name, as in some containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # OSError since Python 3.13
        return str(os.getuid())
