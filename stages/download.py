"""Download a data set's original files, or list a folder of images, and write a manifest.

    python -m stages.download params.yaml data/raw

Reads: params.yaml, section `download`; the variable DATA_MIRROR; the network, unless the files are on this machine.
Writes: the folder, with `manifest.json` (`classifier.sources.raw`) and the original files or, for dataset `folder`, a
table of the images, which stay where they are (`classifier.sources.images`).
Why: all later stages start from bytes that match a checksum. The output does not depend on the mirror or the folder.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from classifier.errors import UserError
from classifier.params import DownloadParams, load_params
from classifier.project.cli import paths, run_stage
from classifier.project.files import replacing, sha256_of
from classifier.sources.catalog import SourceFile, origin
from classifier.sources.mirrors import configured_mirrors
from classifier.sources.raw import LARGEST, Manifest, write_manifest
from classifier.sources.transfer import fetch

LARGEST_ARCHIVE = 1 << 40  # bytes


def main(arguments: list[str]) -> None:
    params_path, raw = paths(arguments, "params", "raw")
    params = load_params(params_path, for_training=False).download
    with replacing(raw) as new:
        manifest = describe_images(new, params) if params.dataset == "folder" else download(new, params)
    if (images := manifest.images) is None:
        print(f"{params.dataset}: {len(manifest.files)} files, {sum(file.bytes for file in manifest.files):,} bytes")
        return
    print(f"{params.name}: {images.count:,} files, {len(images.class_names):,} classes")
    if images.skipped:
        print(f"skipped: {', '.join(f'{count:,} {kind}' for kind, count in images.skipped.items())}")


def download(folder: Path, params: DownloadParams) -> Manifest:
    """Fetch the files of a known data set."""
    source = origin(params.dataset)
    # Installed files take precedence over any mirror, so that `digits` never needs a network.
    installed = [str(source.installed)] if source.installed else []
    for file in source.files:
        _fetch(file, folder, [*installed, *configured_mirrors(params.mirror), *source.mirrors], params, LARGEST)
    return write_manifest(folder, params.dataset, source)


def describe_images(folder: Path, params: DownloadParams) -> Manifest:
    """List a folder or archive of images, which is downloaded first if it has an address."""
    from classifier.sources.images import open_files, write_images  # 0.2 s, which the known data sets do not need

    archive = None
    if params.address is not None:
        archive = archive_name(params.address)
        file = SourceFile(archive, f"sha256:{params.sha256}", params.address)
        _fetch(file, folder, configured_mirrors(params.mirror), params, LARGEST_ARCHIVE)
    place = folder / archive if archive else Path(params.folder)
    files = open_files(place, folder)
    if params.sha256 is not None and archive is None:
        if place.is_dir():
            raise UserError(f"download.sha256 is for a zip or tar, and {place} is a folder: set it to null")
        if (found := sha256_of(place)) != params.sha256:
            raise UserError(f"{place} has SHA-256 {found}: allowed is download.sha256, {params.sha256}")
    return write_images(folder, files, params, archive)


def archive_name(address: str) -> str:
    """The name in data/raw of the archive at this address."""
    name = unquote(urlsplit(address).path.rpartition("/")[2])
    return re.sub(r"[^\w.-]", "_", name, flags=re.ASCII).lstrip(".-") or "archive"


def _fetch(file: SourceFile, folder: Path, mirrors: list[str], params: DownloadParams, largest: int) -> None:
    mirror = fetch(file, folder, mirrors, deadline_s=params.deadline_s, retries=params.retries, largest=largest)
    print(f"{file.name} from {mirror}", flush=True)


if __name__ == "__main__":
    run_stage(main)
