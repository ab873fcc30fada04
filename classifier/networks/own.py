"""A network of one's own, `module:function`: a function in a Python file of the project's folder `networks/`.

DVC and the fingerprint of checkpoints follow the folder, and MLflow stores it with the model.
"""

from __future__ import annotations

import json
import re
import sys
from importlib import import_module, invalidate_caches
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from torch import nn

from classifier.errors import UserError
from classifier.project.files import sha256, sha256_of
from classifier.project.lineage import PACKAGE, project_root

FOLDER = "networks"
NAME = re.compile(r"([A-Za-z]\w*(?:\.[A-Za-z]\w*)*):([A-Za-z]\w*)")  # module:function


def own_folder() -> Path:
    """`networks/` beside the library, as in the project and in a model that MLflow stores; else in the project."""
    beside = PACKAGE.parent / FOLDER
    return beside if beside.is_dir() else project_root() / FOLDER


def code_of(network: str) -> str:
    """What decides a network's code, the library apart: a hash of one's own folder, or the version of its package."""
    if ":" in network:
        folder = own_folder()
        files = {path.relative_to(folder).as_posix(): sha256_of(path) for path in sorted(folder.rglob("*.py"))}
        return sha256(json.dumps(files).encode())
    package = "timm" if network.startswith("timm/") else "torchvision"
    try:
        return "" if network == "lenet5" else f"{package} {version(package)}"
    except PackageNotFoundError:  # building the network says so
        return package


def own_network(name: str, channels: int, classes: int, size: int) -> nn.Module:
    """What the function returns. An error inside of it keeps its traceback, since it is one of the person's program."""
    found = NAME.fullmatch(name)
    if not found:
        raise UserError(f"the network {name!r:.80} should be module:function, as in example:small")
    module, function = found.groups()
    folder = own_folder()
    path = folder.joinpath(*module.split(".")).with_suffix(".py")
    if not path.is_file():
        raise UserError(f"network {name}: {path} does not exist")
    if str(folder.parent) not in sys.path:
        sys.path.insert(0, str(folder.parent))
        invalidate_caches()
    loaded = import_module(f"{FOLDER}.{module}")
    if loaded.__file__ is None or not path.samefile(loaded.__file__):
        raise UserError(f"network {name}: Python finds {loaded.__file__} in place of {path}: rename the module")
    make = getattr(loaded, function, None)
    if not callable(make):
        raise UserError(f"network {name}: {path} has no function {function}")
    network = make(channels, classes, size)
    if not isinstance(network, nn.Module):
        raise UserError(f"network {name} returns {type(network).__name__}: allowed is a torch.nn.Module")
    return network
