"""`data/raw/`: a data set's original files, unchanged, and `manifest.json`, which describes them.

Reading verifies every file against the manifest, and the manifest against its checksum, before anything parses it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from classifier.errors import UserError
from classifier.project.checksummed import Checksummed, read_checksummed, write_checksummed
from classifier.project.files import read_file, sha256, sha256_of
from classifier.sources.catalog import SOURCES, Origin

MANIFEST = "manifest.json"
AGAIN = "run dvc repro -f download"
LARGEST = 1 << 28  # bytes of any file: CIFAR-10's archive, the largest, has 170,052,171


class RawFile(BaseModel):
    """One original file; `source` is its official address, whichever mirror it came from."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Annotated[str, Field(pattern=r"^\w[\w.-]*$")]  # of a file in the same folder
    source: str
    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Manifest(Checksummed):
    """The fields of manifest.json."""

    dataset: str
    home: str  # address
    licence: str
    citation: str
    files: list[RawFile]


def write_manifest(folder: Path, dataset: str, origin: Origin) -> Manifest:
    """Write the description of the files of `origin` beside them, into `folder`."""
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
    write_checksummed(folder / MANIFEST, manifest)
    return manifest


def read_raw(folder: Path) -> tuple[Manifest, dict[str, bytes]]:
    """The manifest, and every file's bytes by name, verified.

    Raises FileNotFoundError for a missing file, UserError for a changed one; both name it and the command that
    repairs it.
    """
    path = folder / MANIFEST
    manifest = read_checksummed(path, Manifest, "download")
    if manifest.dataset not in SOURCES:
        raise UserError(f"{path}: dataset {manifest.dataset!r:.80}: allowed are {', '.join(SOURCES)}: {AGAIN}")
    return manifest, {file.name: _read(folder / file.name, file) for file in manifest.files}


def _read(path: Path, file: RawFile) -> bytes:
    try:
        content = read_file(path, LARGEST)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist: run dvc repro download") from None
    if (found := sha256(content)) != file.sha256:
        raise UserError(
            f"{path} has {len(content):,} bytes and SHA-256 {found}, "
            f"{MANIFEST} says {file.bytes:,} and {file.sha256}: {AGAIN}"
        )
    return content
