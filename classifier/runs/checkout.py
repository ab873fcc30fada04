"""Runs DVC in a temporary checkout of the project, with its own MLflow store."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
from ruamel.yaml import YAML

from classifier.arithmetic import CAPS
from classifier.project.processes import end_processes
from classifier.recording.store import DATABASE, sqlite_uri
from classifier.repository.dvc import dvc_command, dvc_environment
from classifier.repository.worktree import lacks_images, share_images


class Checkout:
    """A checkout of the project at `root`, in the folder `project`."""

    def __init__(self, project: Path, root: Path) -> None:
        self.project = project
        self.output: list[str] = []  # of the last DVC command, by lines
        own = ("MLFLOW_", "PIPELINE_", *CAPS)  # the checkout's own code chooses its arithmetic
        self.environment = {name: value for name, value in dvc_environment().items() if not name.startswith(own)}
        self.environment["DVC_SITE_CACHE_DIR"] = str(project.parent / "dvc-site-cache")
        self.environment["MLFLOW_TRACKING_URI"] = sqlite_uri(project / DATABASE)
        params = YAML(typ="safe", pure=True).load(project / "params.yaml")
        download = params.get("download", {})
        folder = download.get("folder", "images")
        lacks = lacks_images(root, download) and not (project / folder).exists()
        self.lacking = folder if lacks else None  # the user's images
        share_images(root, project, folder)
        share_images(root, project, params.get("train", {}).get("pretrained_file", "weights"))
        mirror = os.environ.get("DATA_MIRROR") or download.get("mirror")
        if mirror and (root / mirror).is_dir():  # relative to the project's root
            self.environment["DATA_MIRROR"] = str((root / mirror).resolve())

    def dvc(self, *arguments: str, shown: bool = True) -> int:
        """Run DVC in the checkout and return its exit status. No process that it started outlives this call.

        Do not pass `--quiet`: it hides why DVC failed.
        """
        self.output = []
        with subprocess.Popen(  # noqa: S603, fixed arguments
            dvc_command(*arguments),
            cwd=self.project,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # only this process gets Ctrl-C, and then ends the others
        ) as process:
            assert process.stdout
            try:
                for line in process.stdout:
                    self.output.append(line.rstrip("\n"))
                    if shown:
                        print(line, end="", file=sys.stderr, flush=True)
            except BaseException:
                _end(psutil.Process(process.pid))
                raise
        return process.returncode


def _end(process: psutil.Process) -> None:
    """Terminate a process and its children; kill those that do not end."""
    family = [process, *process.children(recursive=True)]
    end_processes(lambda: [each for each in family if _is_alive(each)])


def _is_alive(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
