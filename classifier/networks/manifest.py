"""The manifest of `data/pretrained/`, which needs no torch (`classifier.networks.pretrained`)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from classifier.data.dataset import Sha256
from classifier.project.checksummed import Checksummed, write_checksummed

MANIFEST = "manifest.json"
Kind = Literal["imagenet", "file"]


class PretrainedManifest(Checksummed):
    """The fields of manifest.json; None without pretrained weights."""

    network: str  # train.network
    pretrained: Kind | None  # train.pretrained
    source: str | None  # the file's address or name
    source_sha256: Sha256 | None
    sha256: Sha256 | None  # of weights.safetensors
    mean: list[float] | None = Field(max_length=3)  # that the weights expect, of pixels in 0..1; None: the data set's
    std: list[float] | None = Field(max_length=3)


def write_none(folder: Path, network: str) -> None:
    """Write the manifest for a network without pretrained weights."""
    manifest = PretrainedManifest(
        network=network, pretrained=None, source=None, source_sha256=None, sha256=None, mean=None, std=None
    )
    write_checksummed(folder / MANIFEST, manifest)
