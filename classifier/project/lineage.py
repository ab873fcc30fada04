"""The project, the user and DVC's experiment that a process belongs to."""

from __future__ import annotations

import getpass
import os
from pathlib import Path

PACKAGE = Path(__file__).parents[1]  # the library's folder, with all of its code


def project_root() -> Path:
    """The project that all runs belong to.

    A sweep, whose experiments run in clones, names it in PIPELINE_ROOT. DVC names it in DVC_ROOT, also where an
    experiment runs in a temporary folder. Otherwise it is the nearest folder upwards with `.dvc`, else the current one.
    """
    if root := os.environ.get("PIPELINE_ROOT") or os.environ.get("DVC_ROOT"):
        return Path(root).resolve()
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / ".dvc").is_dir()), here)


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
