"""Errors that the user can fix. Any other exception is a bug and keeps its traceback."""

from __future__ import annotations

import re


class UserError(ValueError):
    """An error that the user can fix. Its message is one line: the value, what is allowed, the next command to type.

    It subclasses ValueError, so that pydantic's validators can raise it.
    """


def lacks_memory(error: BaseException) -> bool:
    """Whether memory could not be allocated.

    PyTorch raises OutOfMemoryError for a GPU and RuntimeError for the CPU, NumPy and Python raise MemoryError.
    """
    said = re.search("can't allocate memory|out of memory|ALLOC_FAILED", str(error))
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and said is not None)
