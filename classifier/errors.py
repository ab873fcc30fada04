"""Errors that the user can fix. Any other exception is a bug and keeps its traceback."""


class UserError(ValueError):
    """An error that the user can fix. Its message is one line: the value, what is allowed, the next command to type.

    It subclasses ValueError, so that pydantic's validators can raise it.
    """
