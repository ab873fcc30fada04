"""The stage normalize on folders of images."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageEnhance

from classifier.data import decoding
from classifier.data.dataset import SPLITS, read_meta, read_split
from classifier.data.pixels import decode, decoder
from classifier.params import load_params
from classifier.project import progress, resuming
from classifier.sources import images
from stages import normalize
from tests import difficult
from tests.data.test_difficult import REFUSED
from tests.data.test_duplicates import texture
from tests.difficult import file_of
from tests.folders import Normalized
from tests.processes import HEAVY, run_without
from tests.samples import ROOT


def write(folder: Path, files: dict[str, Image.Image | bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else file_of(content, "PNG"))


def pictures(count: int, start: int = 0) -> dict[str, Image.Image | bytes]:
    """Different pictures of two classes, all in the training split's folder."""
    return {f"train/{('cat', 'dog')[n % 2]}/{n:03d}.png": texture(n, (20, 30)) for n in range(start, start + count)}


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "photos"
    write(place, pictures(20))
    write(place, {f"test/{name}/t{n}.png": texture(100 + n, (20, 30)) for n, name in enumerate(["cat", "dog"] * 3)})
    return place


def test_a_folder_becomes_the_canonical_form(tmp_path, folder):
    normalized = Normalized(tmp_path, folder, image_size=16)
    normalized.run()
    meta = normalized.meta
    assert (meta.name, meta.size, meta.channels, meta.class_names) == ("folder", 16, 3, ["cat", "dog"])
    assert (meta.decoder, meta.excluded, meta.preprocessing.resize) == (decoder(), {}, "pad")
    assert meta.counts == {"train": [9, 9], "validation": [1, 1], "test": [3, 3]}
    table = pd.read_parquet(normalized.data / "images.parquet")
    assert table["path"].tolist() == [path for name in SPLITS for path in normalized.paths(name)]
    for name in SPLITS:
        split = normalized.split(name)
        for image, label, path in zip(split.images, split.labels, normalized.paths(name), strict=True):
            content = (folder / path).read_bytes()
            row = table[table["path"] == path].iloc[0]
            assert np.array_equal(image, decode(content, meta.preprocessing))
            assert path.split("/")[1] == meta.class_names[label] == meta.class_names[row["label"]]
            assert row["split"] == name
            assert row["sha256"] == hashlib.sha256(content).hexdigest()
            assert row["pixels"] == hashlib.sha256(image.tobytes()).hexdigest()
            assert (row["width"], row["height"], row["mode"]) == (30, 20, "RGB")
    scaled = normalized.split("train").images / 255
    assert meta.mean == pytest.approx(scaled.mean((0, 2, 3)), rel=1e-12)
    assert meta.std == pytest.approx(scaled.std((0, 2, 3)), rel=1e-12)
    channels = normalized.table("channels.csv")
    assert channels[channels["split"] == "train"]["mean"].tolist() == pytest.approx(meta.mean, abs=1e-6)
    assert normalized.table("classes.csv").values.tolist() == [[0, "cat", 9, 1, 3], [1, "dog", 9, 1, 3]]
    assert normalized.table("sizes.csv").values.tolist() == [[30, 20, 26]]
    assert normalized.table("modes.csv").values.tolist() == [["RGB", 26]]
    with Image.open(normalized.reports / "classes.png") as sheet:
        assert sheet.width > 700


@pytest.mark.parametrize(("images", "expected"), [("gray", 1), ("mixed", 3)])
def test_channels_are_those_of_the_files(tmp_path, folder, images, expected):
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        if images == "gray" or number:
            path.write_bytes(file_of(Image.open(path).convert("L"), "PNG"))
    normalized = Normalized(tmp_path, folder, image_size=8)
    normalized.run()
    assert normalized.meta.channels == normalized.split("test").images.shape[1] == expected
    other = 4 - expected
    normalized.write_params(image_size=8, channels=other)
    normalized.run()
    assert normalized.split("train").images.shape[1] == other


@pytest.mark.parametrize("groups", ["clip", None])
def test_images_of_a_group_stay_in_one_split(tmp_path, groups):
    """Six clips of each class with four images each."""
    place, rows = tmp_path / "photos", ["path,label,clip"]
    for number in range(48):
        label = ("cat", "dog")[number % 2]
        write(place, {f"{number:02d}.png": texture(number)})
        rows.append(f"{number:02d}.png,{label},{label}{number // 2 % 6}")
    write(place, {"list.csv": "\n".join(rows).encode()})
    normalized = Normalized(tmp_path, place, {"table": "list.csv", "groups": groups}, validation_fraction=0.3)
    normalized.run()
    clip_of = dict(row.split(",")[::2] for row in rows[1:])
    clips = [{clip_of[path] for path in normalized.paths(split)} for split in SPLITS]
    assert all(clips)
    assert (sum(map(len, clips)) == 12) is (groups == "clip")  # each in one split only


@pytest.mark.parametrize("level", [1, -1])
@pytest.mark.parametrize("tops", [[""], ["train/"], ["test/", "train/"]], ids=["classes", "train", "train and test"])
def test_images_of_a_folder_at_this_level_stay_in_one_split(tmp_path, tops, level):
    """Eight clips that show both classes, outermost or innermost below the splits; then one clip in two splits."""
    place = tmp_path / "photos"

    def path(number: int, top: str) -> str:
        folders = (f"clip {number // 8}", ("cat", "dog")[number % 2])
        return f"{top}{'/'.join(folders[::level])}/{number:02d}.png"

    write(place, {path(number, tops[number // 8 % len(tops)]): texture(number) for number in range(64)})
    normalized = Normalized(tmp_path, place, {"groups": level}, image_size=8, validation_fraction=0.3)
    normalized.run()
    assert normalized.meta.class_names == ["cat", "dog"]
    folders = [{part for path in normalized.paths(split) for part in path.split("/")} for split in SPLITS]
    clips = [{name for name in names if name.startswith("clip")} for names in folders]
    assert all(clips)
    assert sum(map(len, clips)) == 8, "each in one split only"
    if "test/" in tops:
        assert clips[2] == {"clip 0", "clip 2", "clip 4", "clip 6"}
        write(place, {path(0, "train/"): texture(64)})
        with pytest.raises(ValueError, match="groups in several splits: 'clip 0' is in train and test: put each group"):
            normalized.run()


def test_a_listed_class_without_images_keeps_its_number(tmp_path, folder):
    normalized = Normalized(tmp_path, folder, {"classes": ["cat", "bird", "dog"]}, image_size=8)
    normalized.run()
    assert normalized.meta.class_names == ["cat", "bird", "dog"]
    assert normalized.meta.counts == {"train": [9, 0, 9], "validation": [1, 0, 1], "test": [3, 0, 3]}
    assert set(normalized.split("train").labels.tolist()) == {0, 2}


@pytest.mark.parametrize("cores", [{0}, {0, 1}])
def test_both_stages_say_how_far_they_are(tmp_path, folder, cores, monkeypatch, capsys):
    monkeypatch.setattr(progress, "EVERY_S", 0)
    monkeypatch.setattr(images, "CHUNK", 10)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: cores, raising=False)
    Normalized(tmp_path, folder, image_size=8).run()
    said = capsys.readouterr().err
    assert "reading files: 10 of 26, " in said
    assert "26 of 26, 0:00:00 left" in said.partition("reading files: 26 of 26")[2]  # of the stage normalize


def test_files_are_decoded_by_a_process_per_core_to_the_same_bytes(tmp_path, folder, monkeypatch):
    """Each process begins once; a single core needs none beside this one."""
    monkeypatch.setattr(decoding, "CHUNK_IMAGES", 4)
    begin, begun, found = decoding._begin, tmp_path / "begun", []

    def counted(decoder):
        begin(decoder)
        (begun / str(os.getpid())).touch()

    monkeypatch.setattr(decoding, "_begin", counted)
    for cores, processes in ((1, 0), (2, 2), (3, 3)):
        shutil.rmtree(begun, ignore_errors=True)
        begun.mkdir()
        monkeypatch.setattr(os, "sched_getaffinity", lambda process, cores=cores: set(range(cores)), raising=False)
        normalized = Normalized(tmp_path / str(cores), folder, image_size=16)
        normalized.run()
        assert len(list(begun.iterdir())) == processes
        found.append({Path(path).name: content for path, content in normalized.contents().items()})
    assert found[0] == found[1] == found[2]


def test_chunks_of_another_decoder_size_or_code_are_not_reused(tmp_path, folder, monkeypatch):
    normalized = Normalized(tmp_path, folder, image_size=8)
    normalized.run()
    preprocessing = normalized.meta.preprocessing
    found = {
        normalize.fingerprint(preprocessing),
        normalize.fingerprint(preprocessing.model_copy(update={"resize": "crop"})),
    }
    monkeypatch.setattr(normalize, "decoder", lambda: "Pillow 1.0")
    found.add(normalize.fingerprint(preprocessing))
    (tmp_path / "data").mkdir()
    (tmp_path / "data/new.py").touch()
    monkeypatch.setattr(resuming, "PACKAGE", tmp_path)
    found.add(normalize.fingerprint(preprocessing))
    assert len(found) == 4


def test_all_bad_files_are_named_at_once_or_excluded_by_name(tmp_path, folder, capsys):
    bad = {"train/cat/page.jpg": b"<html>", "train/dog/cut.png": file_of(texture(1), "PNG")[:300]}
    write(folder, {**bad, "train/dog/empty.jpg": b"", "train/notes.txt": b"hello"})
    normalized = Normalized(tmp_path, folder)
    with pytest.raises(ValueError, match=r"4 of 30 files cannot be used, the first: 'train/cat/page\.jpg': SVG, HTML"):
        normalized.run()
    assert not normalized.data.exists()
    assert {path.name for path in normalized.reports.iterdir()} == {"problems.csv"}
    problems = dict(normalized.table("problems.csv").values.tolist())
    assert list(problems) == ["train/cat/page.jpg", "train/dog/cut.png", "train/dog/empty.jpg", "train/notes.txt"]
    assert problems["train/dog/cut.png"] == "damaged: image file is truncated"
    assert problems["train/dog/empty.jpg"] == "an empty file"
    normalized.write_params(bad_images="exclude")
    normalized.run()
    assert normalized.meta.excluded == problems
    assert sum(normalized.meta.counts["train"]) == 18
    assert dict(normalized.table("problems.csv").values.tolist()) == problems
    assert "files that cannot be used and were excluded: 4" in capsys.readouterr().out
    assert json.loads((normalized.reports / "summary.json").read_text())["excluded"] == 4


def test_an_encrypted_file_of_a_zip_is_named_and_the_others_are_used(tmp_path):
    """The archive's table of contents says which file is encrypted."""
    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, image in pictures(20).items():
            archive.writestr(name, file_of(image, "PNG"))
        archive.getinfo("train/dog/003.png").flag_bits |= 1
    normalized = Normalized(tmp_path, path, image_size=16)
    with pytest.raises(ValueError, match=r"1 of 20 files cannot be used, the first: .*/003\.png': is encrypted"):
        normalized.run()
    normalized.write_params(image_size=16, bad_images="exclude")
    normalized.run()
    assert normalized.meta.excluded == {"train/dog/003.png": "is encrypted"}
    assert normalized.table("problems.csv").values.tolist() == [["train/dog/003.png", "is encrypted"]]
    used = {path for split in SPLITS for path in normalized.paths(split)}
    assert used == pictures(20).keys() - {"train/dog/003.png"}


def test_a_folder_without_a_single_image_says_so(tmp_path):
    write(tmp_path / "photos", {f"{name}/{n}.jpg": b"x" for name in ("a", "b") for n in range(3)})
    normalized = Normalized(tmp_path, tmp_path / "photos", bad_images="exclude")
    with pytest.raises(ValueError, match="the folder holds no image"):
        normalized.run()


@pytest.fixture
def leaking(folder):
    """An exact and a near duplicate of training images among the test images."""
    copy = Image.open(folder / "train/cat/000.png")
    near = ImageEnhance.Contrast(Image.open(folder / "train/dog/001.png")).enhance(0.8)
    write(folder, {"test/cat/copy.png": copy, "test/dog/near.png": near, "train/cat/again.png": copy})
    return folder


def test_leaks_are_listed_and_shown(tmp_path, leaking, capsys):
    normalized = Normalized(tmp_path, leaking, image_size=16, validation_fraction=0.0)
    normalized.run()
    pairs = normalized.table("duplicates.csv")
    found = pairs[["kind", "crossing", "first", "second", "first_label"]].values.tolist()
    assert found == [
        ["exact", "yes", "test/cat/copy.png", "train/cat/000.png", "cat"],
        ["exact", "yes", "test/cat/copy.png", "train/cat/again.png", "cat"],
        ["near", "yes", "test/dog/near.png", "train/dog/001.png", "dog"],
    ]
    metrics = json.loads((normalized.reports / "summary.json").read_text())
    assert metrics == {
        **{
            "images": 29,
            "classes": 2,
            "excluded": 0,
            "blank": 0,
            "exact_duplicates": 2,
            "near_duplicates": 1,
            "leaks": 3,
        }
    }
    with Image.open(normalized.reports / "duplicates.png") as shown:
        assert shown.height > 100
    assert "pairs of duplicates in two splits: 3" in capsys.readouterr().out
    assert sum(normalized.meta.counts["train"]) == 21


def test_data_that_the_network_does_not_take_are_made_and_the_problem_is_told_first(tmp_path, folder, capsys):
    """People look at their data before they choose a network."""
    normalized = Normalized(tmp_path, folder, image_size=16)
    normalized.run()
    problem = "train.network: lenet5 with normalize.image_size: 16; allowed is 32, or another network, such as resnet18"
    assert capsys.readouterr().err.splitlines() == 2 * [f"before training, change {normalized.params}: {problem}"]
    with pytest.raises(ValueError, match=r"has 1 problem:\n  train\.network: lenet5 with normalize\.image_size: 16"):
        load_params(normalized.params)


def test_images_of_a_single_colour_are_told_and_listed(tmp_path, folder, capsys):
    """Such as a white drawing on a transparent ground, with its padding."""
    white = np.full((20, 30, 4), 255, np.uint8)
    white[:, ::2, 3] = 0
    write(folder, {"train/cat/white.png": file_of(Image.fromarray(white), "PNG")})
    normalized = Normalized(tmp_path, folder, image_size=32, validation_fraction=0.0)
    normalized.run()
    assert "images of a single colour: 1, listed in " in capsys.readouterr().out
    assert normalized.table("blank.csv").values.tolist() == [["train/cat/white.png", "train", "cat"]]
    for values in ({"image_size": 16}, {"image_size": 32, "resize": "crop"}):
        normalized.write_params(validation_fraction=0.0, **values)
        normalized.run()
        assert len(normalized.table("blank.csv")) == 1
    (folder / "train/cat/white.png").unlink()
    normalized.run()
    assert not (normalized.reports / "blank.csv").exists()


def test_leaks_can_be_refused_or_dropped_from_train(tmp_path, leaking):
    normalized = Normalized(tmp_path, leaking, image_size=16, validation_fraction=0.0, leaks="refuse")
    with pytest.raises(
        ValueError, match=r"images with a duplicate in a later split .*: 3, the first: 'train/cat/000\.png'"
    ):
        normalized.run()
    assert len(normalized.table("duplicates.csv")) == 3
    assert not normalized.data.exists()
    normalized.write_params(image_size=16, validation_fraction=0.0, leaks="drop")
    normalized.run()
    dropped = {"train/cat/000.png", "train/cat/again.png", "train/dog/001.png"}
    assert set(normalized.meta.excluded) == dropped == set(normalized.table("excluded.csv")["path"])
    assert not dropped & set(normalized.paths("train"))
    assert len(normalized.paths("train")) == len(normalized.split("train")) == 18
    assert len(normalized.split("test")) == 8
    scaled = normalized.split("train").images / 255
    assert normalized.meta.mean == pytest.approx(scaled.mean((0, 2, 3)), rel=1e-12)


def test_a_class_that_leaks_altogether_is_named(tmp_path, folder):
    for number in range(0, 20, 2):
        write(folder, {f"test/cat/copy{number}.png": texture(number, (20, 30))})
    normalized = Normalized(tmp_path, folder, image_size=16, leaks="drop", validation_fraction=0.0)
    with pytest.raises(ValueError, match="leaks: drop leaves no training images for class 'cat': add images, or set"):
        normalized.run()


def test_the_table_of_images_is_verified(tmp_path, folder):
    normalized = Normalized(tmp_path, folder, image_size=8)
    normalized.run()
    path = normalized.data / "images.parquet"
    content = bytearray(path.read_bytes())
    content[20] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"images\.parquet has SHA-256 .*: run dvc repro -f normalize"):
        normalized.paths("train")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"images\.parquet does not exist: run dvc repro normalize"):
        normalized.paths("train")


def test_a_file_that_changed_since_download_is_refused(tmp_path, folder):
    normalized = Normalized(tmp_path, folder)
    normalized.run()
    before = normalized.contents()
    (folder / "train/cat/000.png").write_bytes(file_of(texture(7), "PNG"))
    with pytest.raises(ValueError, match=r"'train/cat/000\.png' has SHA-256 .*: it was changed: run dvc repro"):
        normalize.main([str(path) for path in (normalized.params, normalized.raw, normalized.data, normalized.reports)])
    assert normalized.contents() == before


def test_a_killed_normalization_resumes_and_ends_with_the_same_bytes(workspace):
    """Killed by SIGKILL while it decodes; then the files of finished chunks are not even read."""
    folder = workspace / "photos"
    write(folder, pictures(240))
    whole, again = (Normalized(workspace / name, folder, image_size=16) for name in ("whole", "again"))
    whole.run()
    script = (
        "import sys, time\nfrom classifier.data import decoding\nfrom classifier.sources.images import Images\n"
        "from stages.normalize import main\n"
        "original = Images.read\n"
        "def slow(self, record):\n    time.sleep(0.01)\n    return original(self, record)\n"
        "Images.read = slow\ndecoding.CHUNK_IMAGES = 8\nmain(sys.argv[1:])\n"
    )
    arguments = [str(path) for path in (again.params, whole.raw, again.data, again.reports)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    stage = subprocess.Popen([sys.executable, "-c", script, *arguments], env=environment)
    work = workspace / ".pipeline/normalizing"
    while len(list(work.glob("*/*.safetensors"))) < 4:
        assert stage.poll() is None
        time.sleep(0.01)
    stage.send_signal(signal.SIGKILL)
    stage.wait()
    assert not again.data.exists()
    done = len(list(work.glob("*/*.safetensors")))
    script = script.replace("time.sleep(0.01)", "os.write(1, f'{record.path}\\n'.encode())").replace("sys,", "os, sys,")
    ended = subprocess.run([sys.executable, "-c", script, *arguments], env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    read = [line for line in ended.stdout.splitlines() if line.startswith("train/")]
    assert len(read) == 240 - 8 * done
    assert not list(work.iterdir())
    for out in ("data", "reports"):
        for path in getattr(whole, out).iterdir():
            assert (getattr(again, out) / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_large_split_lies_in_several_files(tmp_path, folder, monkeypatch):
    monkeypatch.setattr("classifier.data.writing.LARGEST_FILE", 8 * (3 * 16 * 16 + 8) + 1024)
    normalized = Normalized(tmp_path, folder, image_size=16)
    normalized.run()
    meta = read_meta(normalized.data)
    assert [file.images for file in meta.files["train"]] == [8, 8, 2]
    split = read_split(normalized.data, "train", meta)
    for image, path in zip(split.images, normalized.paths("train"), strict=True):
        assert np.array_equal(image, decode((folder / path).read_bytes(), meta.preprocessing))


def test_no_heavy_imports(tmp_path, folder):
    normalized = Normalized(tmp_path, folder)
    normalized.run()
    code = "import sys; from stages.normalize import main; main(sys.argv[1:])"
    run_without(HEAVY, code, normalized.params, normalized.raw, normalized.data, normalized.reports)


@pytest.mark.parametrize(
    ("paper", "mode", "inverted"), [(230, "L", True), (20, "L", False), (230, "RGB", False)], ids=str
)
def test_gray_images_with_a_light_background_are_inverted(tmp_path, paper, mode, inverted):
    """Wide images, which are padded with black, and a damaged one."""
    place, pen = tmp_path / "photos", 255 - paper
    for number in range(24):
        drawing = Image.new("L", (40, 20), paper)
        drawing.paste(pen, (8 + number // 2, 4, 20, 16))
        content = file_of(drawing.convert(mode), "PNG")
        write(place, {f"{'ab'[number % 2]}/{number}.png": content[: -40 if number == 3 else None]})
    normalized = Normalized(tmp_path, place, image_size=16, invert="auto", bad_images="exclude")
    normalized.run()
    assert normalized.meta.preprocessing.invert is inverted
    if mode == "L":
        assert read_split(normalized.data, "train", normalized.meta).images[0].mean() < 128


@pytest.mark.slow
def test_a_thousand_difficult_files(tmp_path):
    difficult.main(tmp_path / "files")
    normalized = Normalized(tmp_path, tmp_path / "files", bad_images="exclude", image_size=24)
    normalized.run()
    reasons = normalized.meta.excluded
    expected = {name for name, _ in difficult.files() if name[5:] in REFUSED}
    assert {path.rpartition("/")[2] for path in reasons} == expected
    assert sum(sum(counts) for counts in normalized.meta.counts.values()) == difficult.COUNT - len(expected)
