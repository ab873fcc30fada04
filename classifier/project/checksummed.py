"""JSON files with a checksum of themselves: the manifest.json or meta.json of a stage's output.

DVC compares sizes and times, and for read-only files in its cache not even those. Therefore every reader of an output
verifies it: each file against the SHA-256 in the output's manifest.json or meta.json, and that file against its own
checksum, the key `seal`. Served models, which have no dvc.lock, verify theirs too. A checksum detects corruption and
accidental edits; it is not a signature. dvc.lock, which git tracks, reveals a file that was changed together with its
checksum.

The key `format` is the version of a file's fields; a file without it has format 1. To change the fields of a
`Checksummed`, append a function to `UPGRADES` that converts the values of the last format to the new one. Files of all
earlier formats stay readable.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from classifier.errors import UserError
from classifier.project.files import json_bytes, read_file, sha256, write_atomic

CHECKSUM = "seal"
FORMAT = "format"
LARGEST = 1 << 24  # bytes; the meta.json of a model with 10,000 classes has about 200,000

Upgrade = Callable[[dict[str, Any]], dict[str, Any]]


class Checksummed(BaseModel):
    """Base class of the fields of a checksummed file."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    UPGRADES: ClassVar[Sequence[Upgrade]] = ()  # from format 1 to 2, from 2 to 3, ...

    @classmethod
    def newest_format(cls) -> int:
        """The format that is written, and the newest that can be read."""
        return 1 + len(cls.UPGRADES)


Form = TypeVar("Form", bound=Checksummed)


def write_checksummed(path: Path, content: Checksummed) -> None:
    """Write `content` with its checksum. Equal values give equal bytes. Raises ValueError for NaN and Inf."""
    number = content.newest_format()
    values = content.model_dump() | ({FORMAT: number} if number > 1 else {})
    write_atomic(path, json_bytes({**values, CHECKSUM: _checksum(values)}))


def read_checksummed(path: Path, form: type[Form], stage: str) -> Form:
    """Read and verify a file that this version of the project or an earlier one wrote.

    Raises FileNotFoundError or UserError, naming the file and the `stage` that rewrites it.
    """
    try:
        content = read_file(path, LARGEST)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist: run dvc repro {stage}") from None
    again = f"run dvc repro -f {stage}"
    corrupt = f"{path} is corrupt or was not written by this pipeline"
    try:
        values = json.loads(content)
        known = values.pop(CHECKSUM)
        found = _checksum(values)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise UserError(f"{corrupt}: {again}") from None
    if found != known:
        raise UserError(
            f"{path} was changed: its contents have SHA-256 {found}, its checksum says {known!r:.80}: {again}"
        )
    number, newest = values.pop(FORMAT, 1), form.newest_format()
    if type(number) is not int or not 0 < number < 1000:
        raise UserError(f"{corrupt}: format: {number!r:.80}: {again}")
    if number > newest:
        raise UserError(f"{path} {newer_format(number, newest)}, or {again}")
    try:
        for upgrade in form.UPGRADES[number - 1 :]:
            values = upgrade(values)
        return form.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(
            f"{corrupt} ({error.error_count()} problems), the first: "
            f"{where:.200}: {reprlib.repr(first['input']):.200}: {first['msg']:.200}: {again}"
        ) from None
    except (KeyError, AttributeError, TypeError):  # in an upgrade, for values that no version wrote
        raise UserError(f"{corrupt}: {again}") from None


def read_known(path: Path, known: str | None, largest: int, described_by: str, stage: str) -> bytes:
    """Read a file of at most `largest` bytes, and verify the SHA-256 that the file `described_by` beside it records.

    Raises FileNotFoundError or UserError, naming the file and the `stage` that rewrites it.
    """
    try:
        content = read_file(path, largest)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist: run dvc repro {stage}") from None
    if (found := sha256(content)) != known:
        raise UserError(f"{path} has SHA-256 {found}, {described_by} says {known}: run dvc repro -f {stage}")
    return content


def newer_format(number: int, newest: int) -> str:
    """The message about a file that a newer version of the project wrote."""
    return (
        f"was written by a newer version of this project, in format {number} (this version reads formats up to "
        f"{newest}): update the project"
    )


def _checksum(values: Mapping[str, Any]) -> str:
    """SHA-256 of all other values, serialized as they are written."""
    return sha256(json_bytes(values))
