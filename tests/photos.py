"""Small folders of real images for tests."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from ruamel.yaml import YAML

from classifier.params import DownloadParams
from tests.samples import ROOT, file_params


def image(seed: int = 0, kind: str = "png", size: tuple[int, int] = (12, 10), mode: str = "RGB") -> bytes:
    """The bytes of an image file of noise, (width, height)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(content, kind)
    return content.getvalue()


def photos(*names: str) -> dict[str, bytes]:
    """Files of these names, each a different image."""
    return {name: image(seed) for seed, name in enumerate(names)}


def pets(count: int = 6) -> dict[str, bytes]:
    """`count` images of each of three classes, in a folder per class."""
    return photos(*(f"{name}/{number}.png" for name in ("cat", "dog 2", "dog 10") for number in range(count)))


def write_files(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def write_zip(path: Path, files: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_tar(path: Path, files: Mapping[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def download_params(folder: Path | str, **values: Any) -> DownloadParams:
    """Params of dataset `folder`, overridden by `values`."""
    return DownloadParams.model_validate(
        file_params().download.model_dump() | {"dataset": "folder", "folder": str(folder)} | values
    )


def write_download_params(path: Path, **values: Any) -> str:
    """Write a params.yaml for dataset `folder`, with these values of its section download; returns its path."""
    tree = YAML(typ="safe").load(ROOT / "params.yaml")
    tree["download"] |= {"dataset": "folder", "retries": 0, **values}
    path.write_text(json.dumps(tree))
    return str(path)
