"""`data/raw/`: the original files of a data set, untouched, and `manifest.json`, which says what they are.

Reading verifies every file against the manifest before anything parses it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from classifier.files import sha256, sha256_of, write_json
from classifier.sources import SOURCES, Origin

MANIFEST = "manifest.json"
AGAIN = "run dvc repro -f download"


class RawFile(BaseModel):
    """One original file; `source` is its official address, whichever mirror it came from."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Annotated[str, Field(pattern=r"^\w[\w.-]*$")]  # of a file in the same folder
    source: str
    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Manifest(BaseModel):
    """What manifest.json holds."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    dataset: str
    home: str  # address
    licence: str
    citation: str
    files: list[RawFile]


def write_manifest(folder: Path, dataset: str, origin: Origin) -> Manifest:
    """Describe the files of `origin` that lie in `folder`, and write that beside them."""
    source = SOURCES[dataset]
    manifest = Manifest(
        dataset=dataset,
        home=source.home,
        licence=source.licence,
        citation=source.citation,
        files=[
            RawFile(
                name=file.name,
                source=origin.address(file),
                bytes=(folder / file.name).stat().st_size,
                sha256=sha256_of(folder / file.name),
            )
            for file in origin.files
        ],
    )
    write_json(folder / MANIFEST, manifest.model_dump())
    return manifest


def read_raw(folder: Path) -> tuple[Manifest, dict[str, bytes]]:
    """The manifest, and every file's bytes by name, verified.

    FileNotFoundError for a missing file, ValueError for one that is not what was written; both name it and the command
    that mends it.
    """
    path = folder / MANIFEST
    try:
        manifest = Manifest.model_validate_json(_read(path))
    except ValidationError as error:
        raise ValueError(f"{path} is damaged ({error.error_count()} problems): {AGAIN}") from None
    if manifest.dataset not in SOURCES:
        raise ValueError(f"{path}: dataset {manifest.dataset!r}: allowed are {', '.join(SOURCES)}: {AGAIN}")
    contents = {file.name: _read(folder / file.name) for file in manifest.files}
    for file in manifest.files:
        if (found := sha256(contents[file.name])) != file.sha256:
            raise ValueError(
                f"{folder / file.name} has {len(contents[file.name]):,} bytes and SHA-256 {found}, "
                f"{MANIFEST} says {file.bytes:,} and {file.sha256}: {AGAIN}"
            )
    return manifest, contents


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist: {AGAIN}") from None
