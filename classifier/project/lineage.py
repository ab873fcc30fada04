"""The project, the user and DVC's experiment that a process belongs to."""

from __future__ import annotations

import getpass
import os
from pathlib import Path

PACKAGE = Path(__file__).parents[1]  # the library's folder, with all of its code
PROJECT_FILES = ("dvc.yaml", "params.yaml")  # in a project's root


def project_root() -> Path:
    """The project that all runs belong to.

    A sweep, whose experiments run in clones, names it in PIPELINE_ROOT. DVC names it in DVC_ROOT, also where an
    experiment runs in a temporary folder. Otherwise it is the project that holds the current folder, or, outside a
    project, the current folder itself.
    """
    return named_root() or find_root(Path.cwd()) or Path.cwd()


def named_root() -> Path | None:
    """The project that the environment names."""
    root = os.environ.get("PIPELINE_ROOT") or os.environ.get("DVC_ROOT")
    return Path(root).resolve() if root else None


def find_root(start: Path) -> Path | None:
    """The project that holds the folder `start`: the nearest folder upwards with `.dvc`, as DVC itself looks for it.

    Without DVC's folder it is the nearest one with `dvc.yaml` and `params.yaml`; None when there is neither.
    """
    folders = [start, *start.parents]
    with_dvc = (folder for folder in folders if (folder / ".dvc").is_dir())
    with_files = (folder for folder in folders if all((folder / name).is_file() for name in PROJECT_FILES))
    return next(with_dvc, None) or next(with_files, None)


def user_name() -> str:
    """The user's name, or number: in a container the number may have no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # OSError since Python 3.13
        return str(os.getuid())


def experiment_tags() -> dict[str, str]:
    """Name and baseline of DVC's experiment; empty in a plain `dvc repro`."""
    names = {"dvc.exp.name": "DVC_EXP_NAME", "dvc.exp.baseline": "DVC_EXP_BASELINE_REV"}
    return {tag: os.environ[name] for tag, name in names.items() if os.environ.get(name)}
