"""`data/raw/`: a data set's original files, unchanged, and `manifest.json`, which describes them.

Of dataset `folder` it holds a table of the images (`classifier.sources.images`) in place of the images themselves.
Reading verifies every file against the manifest, and the manifest against its checksum, before anything parses it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from classifier.errors import UserError
from classifier.project.checksummed import Checksummed, read_checksummed, read_known, write_checksummed
from classifier.project.files import sha256_of
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


class ImageSet(BaseModel):
    """What the stage download found in a folder or archive of images."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    class_names: list[str]  # in the order of their numbers
    listed: bool  # in download.classes, which allows classes without images
    count: int  # files, with and without a problem
    skipped: dict[str, int]  # kind of file -> files
    archive: str | None  # downloaded, in the same folder; None: the images are in download.folder


class Manifest(Checksummed):
    """The fields of manifest.json."""

    UPGRADES = (lambda values: values | {"images": None},)

    dataset: str
    home: str  # address
    licence: str
    citation: str
    files: list[RawFile]
    images: ImageSet | None  # of dataset folder


def write_manifest(folder: Path, dataset: str, origin: Origin) -> Manifest:
    """Write the manifest of the files of `origin`, which are in `folder`."""
    source = SOURCES[dataset]
    manifest = Manifest(
        dataset=dataset,
        home=source.home,
        licence=source.licence,
        citation=source.citation,
        files=[describe(folder / file.name, origin.address(file)) for file in origin.files],
        images=None,
    )
    write_checksummed(folder / MANIFEST, manifest)
    return manifest


def describe(path: Path, source: str) -> RawFile:
    """Describe a file that came from the address `source`."""
    return RawFile(name=path.name, source=source, bytes=path.stat().st_size, sha256=sha256_of(path))


def read_manifest(folder: Path) -> Manifest:
    """The manifest, verified. Raises FileNotFoundError or UserError, naming the command that repairs it."""
    path = folder / MANIFEST
    manifest = read_checksummed(path, Manifest, "download")
    if manifest.dataset not in SOURCES and manifest.images is None:
        raise UserError(f"{path}: dataset {manifest.dataset!r:.80}: allowed are {', '.join(SOURCES)}: {AGAIN}")
    return manifest


def read_raw(folder: Path) -> tuple[Manifest, dict[str, bytes]]:
    """The manifest, and every file's bytes by name, verified.

    Raises FileNotFoundError for a missing file, UserError for a changed one; both name it and the command that
    repairs it.
    """
    manifest = read_manifest(folder)
    return manifest, {file.name: read_verified(folder / file.name, file) for file in manifest.files}


def read_verified(path: Path, file: RawFile) -> bytes:
    """The file's bytes. Raises FileNotFoundError or UserError unless they are those of the manifest."""
    return read_known(path, file.sha256, LARGEST, MANIFEST, "download")
