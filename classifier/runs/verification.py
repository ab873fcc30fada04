"""Runs the committed pipeline again, on this machine's CPU, and compares its outputs with the committed dvc.lock.

Unlike `classifier.runs.reproduction`, this needs no recorded run: the expected hashes are in dvc.lock.
"""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from ruamel.yaml import YAML

from classifier.errors import UserError
from classifier.params import Params, load_params
from classifier.repository.dvc import complaint
from classifier.repository.git import Repository
from classifier.repository.lockfile import Lock, hash_of, read_lock
from classifier.repository.worktree import worktree
from classifier.runs.checkout import Checkout

LIBRARIES = Path("requirements.lock")


@dataclass(frozen=True)
class Output:
    """An output of a stage: DVC's hash in dvc.lock, and the hash of this machine's output, None if it is missing."""

    stage: str
    path: str
    published: str
    made: str | None

    @property
    def same(self) -> bool:
        return self.published == self.made


@dataclass(frozen=True)
class Verification:
    """The result: every output of the pipeline, and what may explain a difference."""

    commit: str
    outputs: list[Output]
    machine: dict[str, str]  # how this machine computes
    libraries: dict[str, tuple[str, str]]  # versions that differ from requirements.lock: (installed, locked)
    outdated: list[str]  # code and params that changed since dvc.lock was written

    @property
    def differences(self) -> list[Output]:
        return [each for each in self.outputs if not each.same]

    def summary(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "commit": self.commit,
            "identical": not self.differences,
            "outputs": [asdict(each) for each in self.outputs],
            "machine": self.machine,
            "libraries": {name: {"installed": here, "locked": there} for name, (here, there) in self.libraries.items()},
            "outdated": self.outdated,
        }


def verify(root: Path) -> Verification:
    """Run the pipeline of HEAD in a temporary clone. Its output goes to standard error.

    Raises UserError or OSError if that is not possible.
    """
    commit = Repository.of(root).head()
    with worktree(root, commit, b"") as project:
        lock, params = read_lock(project), load_params(project / "params.yaml")
        checkout = Checkout(project, root)
        checkout.environment["CUDA_VISIBLE_DEVICES"] = ""  # the published outputs were computed on a CPU
        if checkout.dvc("repro", "--force", "--no-run-cache", "--no-commit"):
            raise UserError(f"the pipeline of commit {commit[:8]} fails here: {complaint(checkout.output)}")
        outputs = [
            Output(stage, out["path"], out["md5"], hash_of(project / out["path"]))
            for stage, content in lock.stages.items()
            for out in content.get("outs", [])
        ]
        return Verification(commit, outputs, machine(params), other_libraries(project), outdated(project, lock))


def machine(params: Params) -> dict[str, str]:
    """How this machine computes with these params, as the stages do."""
    import torch

    from classifier.arithmetic import use
    from classifier.device import environment
    from classifier.training.parts import computation_of

    use(params.train.arithmetic)
    cpu = torch.device("cpu")
    found = environment(cpu) | computation_of(params.train, cpu).recorded() | {"machine": platform.machine()}
    names = ("machine", "cpu", "arithmetic", "instructions", "parts", "processes", "python", "torch", "numpy")
    return {name: found[name] for name in names}


def other_libraries(project: Path) -> dict[str, tuple[str, str]]:
    """Installed versions that differ from requirements.lock: name -> (installed, locked)."""
    found = {}
    for line in (project / LIBRARIES).read_text(encoding="utf-8").splitlines():
        if not line[:1].isalnum():
            continue  # hashes and comments
        locked = Requirement(line.removesuffix(chr(92)).strip())
        wanted = str(locked.specifier).removeprefix("==")
        if locked.marker is None or locked.marker.evaluate():
            try:
                here = version(locked.name)
            except PackageNotFoundError:
                here = "missing"
            if here.partition("+")[0] != wanted:  # torch appends its build, as in 2.14.1+cpu
                found[locked.name] = (here, wanted)
    return found


def outdated(project: Path, lock: Lock) -> list[str]:
    """The code and the sections of params.yaml that differ from those in dvc.lock."""
    params = YAML(typ="safe", pure=True).load(project / "params.yaml")
    code = [path for path, md5 in lock.code.items() if hash_of(project / path) != md5]
    return [*code, *(f"params.yaml ({name})" for name, values in lock.params.items() if params.get(name) != values)]
