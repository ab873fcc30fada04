"""Errors that a person can cure; anything else is a fault of the program and keeps its traceback."""


class UserError(ValueError):
    """One clear line: the value, what is allowed, the next command to type.

    It is a ValueError, so that pydantic's validators may raise it and callers need not know which of the two it is.
    """
