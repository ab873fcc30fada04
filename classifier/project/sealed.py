"""JSON files that hold their own SHA-256, their `seal`: the manifests and descriptions beside a stage's files.

DVC looks at size and time, and at a read-only file of its cache not even at those. So whoever reads an output verifies
it: each file against the SHA-256 that the output's manifest.json or meta.json holds, and that against its seal. Models
carry theirs to wherever they are served, where no dvc.lock is. A seal notices damage and hands that slip; it is no
signature: a file that was changed together with its hash and the seal differs from dvc.lock, which git keeps.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from classifier.errors import UserError
from classifier.project.files import json_bytes, read_file, sha256, write_atomic

Form = TypeVar("Form", bound=BaseModel)

SEAL = "seal"
LARGEST = 1 << 24  # bytes; a model of 10,000 classes has some 200,000


def write_sealed(path: Path, content: BaseModel) -> None:
    """Equal values are equal bytes; NaN and Inf raise UserError."""
    values = content.model_dump()
    write_atomic(path, json_bytes({**values, SEAL: _seal(values)}))


def read_sealed(path: Path, form: type[Form], stage: str) -> Form:
    """What write_sealed wrote; FileNotFoundError or UserError name the file and `stage`, which makes it anew."""
    try:
        content = read_file(path, LARGEST)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist: run dvc repro {stage}") from None
    again = f"run dvc repro -f {stage}"
    try:
        values = json.loads(content)
        known = values.pop(SEAL)
        found = _seal(values)
        parsed = form.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(
            f"{path} is damaged ({error.error_count()} problems), the first: "
            f"{where:.200}: {reprlib.repr(first['input']):.200}: {first['msg']:.200}: {again}"
        ) from None
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise UserError(f"{path} is damaged, or none of ours: {again}") from None
    if found != known:
        raise UserError(f"{path} was changed: its contents have SHA-256 {found}, its seal says {known!r:.80}: {again}")
    return parsed


def _seal(values: Mapping[str, Any]) -> str:
    """SHA-256 of everything else in the file, in the one form in which it is written."""
    return sha256(json_bytes(values))
