"""A user's network, `module:function`: a function in a Python file of the project's folder `networks/`.

DVC and the fingerprint of checkpoints detect changes in the folder, and MLflow stores it with the model.
"""

from __future__ import annotations

import re
import sys
from importlib import import_module, invalidate_caches
from inspect import signature

from torch import nn
from torch.nn.parameter import is_lazy

from classifier.errors import UserError
from classifier.networks.names import FOLDER, own_folder

NAME = re.compile(r"([A-Za-z]\w*(?:\.[A-Za-z]\w*)*):([A-Za-z]\w*)")  # module:function


def own_network(name: str, channels: int, classes: int, size: int) -> nn.Module:
    """Call the function and return its network. An error inside it keeps its traceback, as it is in the user's code."""
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
    try:
        signature(make).bind(channels, classes, size)
    except TypeError:
        raise UserError(
            f"network {name}: {path} has {function}{signature(make)}: allowed is {function}(channels, classes, size)"
        ) from None
    network = make(channels, classes, size)
    if not isinstance(network, nn.Module):
        raise UserError(f"network {name} returns {type(network).__name__}: allowed is a torch.nn.Module")
    if lazy := [key for key, parameter in network.named_parameters() if is_lazy(parameter)]:
        raise UserError(f"network {name}: {lazy[0]} belongs to a lazy layer: allowed are layers of a given size")
    return network
