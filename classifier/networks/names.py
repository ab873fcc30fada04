"""What a network's name tells without building the network. Needs no torch."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from classifier.project.files import sha256, sha256_of
from classifier.project.lineage import PACKAGE, project_root
from classifier.schema.train import LENET5

FOLDER = "networks"  # of the user's networks, in the project's root


def is_own(network: str) -> bool:
    """Whether it is a user's network, `module:function`."""
    return ":" in network


def packages_of(network: str) -> list[str]:
    """The packages, besides torch, that define it."""
    if network == LENET5 or is_own(network):
        return []
    return ["timm", "torchvision"] if network.startswith("timm/") else ["torchvision"]


def own_folder() -> Path:
    """`networks/` beside the library, as in the project and in a model that MLflow stores; else in the project."""
    beside = PACKAGE.parent / FOLDER
    return beside if beside.is_dir() else project_root() / FOLDER


def code_of(network: str) -> str:
    """Identifies a network's code outside this library: a hash of the user's folder, or the versions of packages."""
    if is_own(network):
        folder = own_folder()
        files = {path.relative_to(folder).as_posix(): sha256_of(path) for path in sorted(folder.rglob("*.py"))}
        return sha256(json.dumps(files).encode())
    try:
        return ", ".join(f"{package} {version(package)}" for package in packages_of(network))
    except PackageNotFoundError as error:  # building the network raises an error that says so
        return str(error)
