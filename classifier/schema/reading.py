"""Reads params.yaml as YAML 1.2, like DVC: 1e-3 is a number. The safe loader rejects tags that build objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.scanner import Scanner, ScannerError

from classifier.errors import UserError
from classifier.project.files import read_file

LARGEST = 1 << 15  # bytes; params.yaml has about 4,000, and no text of this size takes the parser over a second
DEEPEST = 20  # nesting levels; params.yaml has four


def read_text(path: Path) -> str:
    try:
        return read_file(path, LARGEST).decode("utf-8")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist: run in the project's root") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}") from None


def parse_yaml(text: str, path: Path) -> Any:
    """Raises UserError; `path` is used in its message."""
    try:
        yaml = YAML(typ="safe", pure=True)
        yaml.Scanner = _Scanner
        return yaml.load(text)
    except (YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).partition("To suppress this check")[0].split())
        raise UserError(f"{path} is not valid YAML: {reason[:500]}") from None


class _Scanner(Scanner):
    """Rejects deep nesting, whose parsing time is quadratic: 4 to 14 s for a file full of brackets."""

    def fetch_more_tokens(self) -> Any:
        if self.flow_level + len(self.indents) > DEEPEST:
            raise ScannerError(None, None, f"nested deeper than {DEEPEST} levels", self.reader.get_mark())
        return super().fetch_more_tokens()
