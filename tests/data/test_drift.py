from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from classifier.data import pixels
from tests.difficult import file_of
from tests.folders import Normalized


@pytest.fixture
def normalized(tmp_path):
    generator = np.random.default_rng(0)
    folder = tmp_path / "photos"
    for number in range(24):
        path = folder / ("cat", "dog")[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file_of(Image.fromarray(generator.integers(0, 255, (8, 8, 3), np.uint8)), "PNG"))
    return Normalized(tmp_path, folder, image_size=8)


def other_decoder(monkeypatch, bright: set[bytes]):
    """A decoder that makes the pixels of these files brighter by 3, and one of them by 7."""
    original = pixels._canvas

    def canvas(image, preprocessing):
        found, box = original(image, preprocessing)
        if found.tobytes() in bright:
            found = np.minimum(found, 248) + np.uint8(3 if found.sum() % 2 else 7)
        return found, box

    monkeypatch.setattr(pixels, "_canvas", canvas)
    monkeypatch.setattr("stages.normalize.decoder", lambda: "Pillow 99")


def test_images_with_other_pixels_are_named_with_the_largest_difference(normalized, monkeypatch, capsys):
    normalized.run()
    images = normalized.split("train").images
    changed = {images[place].tobytes() for place in (1, 4)}
    paths = [normalized.paths("train")[place] for place in (1, 4)]
    other_decoder(monkeypatch, changed)
    monkeypatch.setattr("stages.normalize.PINNED", "98")
    capsys.readouterr()
    normalized.run()
    lines = (normalized.reports / "drift.csv").read_text().splitlines()
    largest = {path: int(value) for path, value in (line.split(",") for line in lines[1:])}
    assert list(largest) == paths
    after = normalized.split("train").images
    for place, path in zip((1, 4), paths, strict=True):
        assert largest[path] == np.abs(after[place].astype(int) - images[place]).max() > 0
    said = capsys.readouterr().err
    assert f"decoding with Pillow {pixels.PIL.__version__}: 98 is locked, pixels may differ from it" in said
    assert f"images whose pixels differ from Pillow {pixels.PIL.__version__}" in said
    assert f": 2, by up to {max(largest.values())} of 255, listed in" in said


def test_equal_pixels_are_not_reported(normalized, monkeypatch, capsys):
    normalized.run()
    other_decoder(monkeypatch, set())
    normalized.run()
    assert not (normalized.reports / "drift.csv").exists()
    assert "other pixels" not in capsys.readouterr().err


def test_another_preprocessing_and_changed_files_are_not_compared(normalized, capsys):
    normalized.run()
    normalized.write_params(image_size=10)
    normalized.run()
    assert not (normalized.reports / "drift.csv").exists()
    path = next(normalized.folder.rglob("*.png"))
    path.write_bytes(file_of(Image.new("RGB", (8, 8), "red"), "PNG"))
    normalized.run()
    assert not (normalized.reports / "drift.csv").exists()
