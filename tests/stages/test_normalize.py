from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from classifier.data.dataset import SPLITS, read_meta, read_split
from classifier.data.formats import parse
from classifier.project.files import sha256_of
from classifier.sources.catalog import SOURCES, Origin, SourceFile
from classifier.sources.raw import read_raw, write_manifest
from stages import download, normalize
from tests import tiny_files
from tests.conftest import ROOT
from tests.processes import HEAVY, run_without

OUTPUT = {"train.safetensors", "validation.safetensors", "test.safetensors", "meta.json"}
OF_MNIST = {  # split -> SHA-256 of its file, of tests/tiny_files.py
    "train": "2fe6452c2220e96ca035ca7b0c178e2e751e8cf7a5475c29a3f58b2e656c7ad5",
    "validation": "cb6bcc1686267ca473d8c2b0bdee3a34b0f1ca5301d7eb56114425f17e6d43c8",
    "test": "1d5840d62ef88a0dfa1d9be9bb4d2ee454246f71ba9f079e1e29dbc78a7add4d",
}
OF_CIFAR10 = {
    "train": "204a308d30da69fb9abfd6655f42fdb579244f0982c52652b28c39ead412fc20",
    "validation": "76364aa0e0ad33d77eee89642ef46a1cf3723f92a3c9c9371883bf9a88ccad96",
    "test": "f9e9022ec64c291f145a1454e8426e847da00b5cc6e604fa891938b1ff6c6e90",
}


def params(folder: Path, **changes: str) -> str:
    text = (ROOT / "params.yaml").read_text()
    before, section = text.split("normalize:\n")
    for key, value in changes.items():
        line = next(line for line in section.splitlines() if line.strip().startswith(f"{key}:"))
        section = section.replace(line, f"  {key}: {value}", 1)
    path = folder / "params.yaml"
    path.write_text(f"{before}normalize:\n{section}")
    return str(path)


def raw_folder(folder: Path, dataset: str, files: dict[str, bytes]) -> Path:
    """What the stage download would have written."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    write_manifest(folder, dataset, Origin(tuple(SourceFile(name, "") for name in files), ("https://official/",)))
    return folder


def arguments(folder: Path, raw: Path, normalized: Path, **changes: str) -> list[str]:
    return [params(folder, **changes), str(raw), str(normalized), str(folder / "reports")]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_digits_without_heavy_imports(tmp_path):
    raw, normalized = tmp_path / "raw", tmp_path / "normalized"
    download.main([params(tmp_path), str(raw)])
    code = "import sys; from stages.normalize import main; main(sys.argv[1:])"
    printed = run_without([*HEAVY, "pyarrow"], code, *arguments(tmp_path, raw, normalized))
    assert printed == "images: 1,295 train, 143 validation, 359 test\nmean 0.2372, std 0.3326\n"
    assert {path.name for path in normalized.iterdir()} == OUTPUT
    meta = read_meta(normalized)
    splits = {name: read_split(normalized, name, meta) for name in SPLITS}
    assert (meta.name, meta.channels, meta.class_names) == ("digits", 1, list("0123456789"))
    assert (meta.source, meta.licence) == (SOURCES["digits"].home, "CC BY 4.0")
    assert {name: len(split) for name, split in splits.items()} == {"train": 1295, "validation": 143, "test": 359}
    for name, split in splits.items():
        assert meta.counts[name] == np.bincount(split.labels).tolist()
        assert split.images.shape == (len(split), 1, 32, 32)
        assert split.labels.dtype == np.int64
    scaled = splits["train"].images / 255
    assert meta.mean == pytest.approx([scaled.mean()], rel=1e-12)
    assert meta.std == pytest.approx([scaled.std()], rel=1e-12)
    means = [image.mean() for image in splits["test"].images]
    assert min(means) > 10, "every image shows something"


def test_the_same_bytes_come_out_whatever_lay_there(tmp_path):
    raw, normalized = raw_folder(tmp_path / "raw", "mnist", tiny_files.mnist()), tmp_path / "normalized"
    normalize.main(arguments(tmp_path, raw, tmp_path / "first"))
    first = contents(tmp_path / "reports")
    normalized.mkdir()
    for name in ("stale", "meta.json", "train.safetensors"):
        (normalized / name).write_text("stale")
    normalize.main(arguments(tmp_path, raw, normalized))
    found = contents(normalized)
    assert set(found) == OUTPUT
    assert found == contents(tmp_path / "first")
    assert contents(tmp_path / "reports") == first
    assert str(tmp_path).encode() not in b"".join(found.values())


def test_the_sources_test_images_are_the_test_split(tmp_path):
    files = tiny_files.mnist(40, 20)
    raw, normalized = raw_folder(tmp_path / "raw", "fashion_mnist", files), tmp_path / "normalized"
    normalize.main(arguments(tmp_path, raw, normalized, validation_fraction="0.25"))
    meta = read_meta(normalized)
    training, test = parse("fashion_mnist", files)
    found = read_split(normalized, "test", meta)
    assert np.array_equal(found.images[:, 0, 2:30, 2:30], test[0])
    assert found.labels.tolist() == test[1].tolist()
    assert meta.class_names[9] == "Ankle boot"
    assert meta.counts == {"train": [3] * 10, "validation": [1] * 10, "test": [2] * 10}
    held = np.concatenate([read_split(normalized, name, meta).images for name in ("train", "validation")])
    assert sorted(image.tobytes() for image in held[:, 0, 2:30, 2:30]) == sorted(
        image.tobytes() for image in training[0]
    )


def test_cifar10_with_statistics_of_params_and_no_validation_split(tmp_path):
    raw, normalized = raw_folder(tmp_path / "raw", "cifar10", tiny_files.cifar10(20)), tmp_path / "normalized"
    given = {"mean": "[0.5, 0.5, 0.5]", "std": "[0.5, 0.5, 0.5]", "validation_fraction": "0.0"}
    normalize.main(arguments(tmp_path, raw, normalized, **given))
    meta = read_meta(normalized)
    assert (meta.channels, meta.mean, meta.std) == (3, [0.5] * 3, [0.5] * 3)
    assert read_split(normalized, "train", meta).images.shape == (100, 3, 32, 32)
    assert read_split(normalized, "validation", meta).images.shape == (0, 3, 32, 32)
    assert meta.counts["validation"] == [0] * 10


@pytest.mark.parametrize("dataset", ["mnist", "fashion_mnist", "kmnist", "cifar10"])
def test_the_bytes_of_the_splits_are_these(tmp_path, dataset):
    """Other bytes mean other data: every result measured so far is void. tests/pipeline/test_golden.py has digits."""
    files = tiny_files.cifar10() if dataset == "cifar10" else tiny_files.mnist()
    expected = OF_CIFAR10 if dataset == "cifar10" else OF_MNIST
    raw = raw_folder(tmp_path / "raw", dataset, files)
    normalize.main(arguments(tmp_path, raw, tmp_path / "normalized"))
    meta = read_meta(tmp_path / "normalized")
    assert meta.sha256 == expected
    for split, known in expected.items():
        assert sha256_of(tmp_path / f"normalized/{split}.safetensors") == known


def test_another_number_of_channels_is_one_message_before_anything_is_written(tmp_path):
    raw, normalized = raw_folder(tmp_path / "raw", "mnist", tiny_files.mnist()), tmp_path / "normalized"
    with pytest.raises(ValueError, match=r"normalize.mean is \[.*\] and normalize.std is \[.* images, which have 1"):
        normalize.main(arguments(tmp_path, raw, normalized, mean="[0.5, 0.5, 0.5]", std="[1, 1, 1]"))
    assert not normalized.exists()


def test_a_changed_file_is_noticed_before_it_is_parsed(tmp_path):
    raw = raw_folder(tmp_path / "raw", "mnist", tiny_files.mnist())
    (raw / "t10k-labels-idx1-ubyte.gz").write_bytes(b"<html>")
    ended = subprocess.run(
        [sys.executable, "-m", "stages.normalize", *arguments(tmp_path, raw, tmp_path / "normalized")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"normalize: {raw}/t10k-labels-idx1-ubyte.gz has SHA-256")
    assert line.endswith("run dvc repro -f download")
    assert not (tmp_path / "normalized").exists()


def test_missing_input_names_the_stage_to_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"manifest\.json does not exist: run dvc repro download"):
        normalize.main(arguments(tmp_path, tmp_path / "raw", tmp_path / "normalized"))


@pytest.mark.mnist
def test_the_official_files(tmp_path, mnist_folder):
    names = [path.name for path in mnist_folder.iterdir()]
    raw = raw_folder(tmp_path / "raw", "mnist", {name: (mnist_folder / name).read_bytes() for name in names})
    normalized = tmp_path / "normalized"
    normalize.main(arguments(tmp_path, raw, normalized, validation_fraction="0.0"))
    meta = read_meta(normalized)
    # The familiar 0.1307 and 0.3081 of the 28x28 images, on 32x32 with a border of zeros.
    mean, square = 0.1306604762738429 * (28 / 32) ** 2, (0.3081078**2 + 0.13066047**2) * (28 / 32) ** 2
    assert meta.mean == pytest.approx([mean], rel=1e-9)
    assert meta.std == pytest.approx([(square - mean**2) ** 0.5], rel=1e-6)
    _, (images, labels) = parse("mnist", read_raw(raw)[1])
    test = read_split(normalized, "test", meta)
    assert np.array_equal(test.images, np.pad(images, ((0, 0), (2, 2), (2, 2)))[:, None])
    assert np.array_equal(test.labels, labels)
    assert json.loads((normalized / "meta.json").read_text())["counts"]["train"][0] == 5923
