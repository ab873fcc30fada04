"""A small folder of photos through all stages: what they say of its files, and what `make repro` says at its end."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from ruamel.yaml import YAML

from classifier.commands.recipe import apply
from classifier.data.dataset import SPLITS, read_meta, read_split
from classifier.data.pixels import decode
from classifier.project.files import sha256_of
from classifier.recording import run as recording
from classifier.recording.journal import waiting_journals
from classifier.tracking.delivery import deliver
from tests.evaluation.test_page import Tags, words
from tests.photos import photos, write_files
from tests.projects import OUTPUTS
from tests.recorded import all_runs, own_store
from tests.samples import ROOT

PARAMS = {
    "download": {"dataset": "folder", "folder": "my photos", "groups": 1},
    "normalize": {"validation_fraction": 0.25},
    "train": {"epochs": 1, "batch_size": 8},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project after all commands of dvc.yaml, and the current folder: 64 photos of eight clips, four for the test."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / ".dvc").mkdir()
    names = [f"{('train', 'test')[n // 8 % 2]}/clip {n // 8}/{('cat', 'dog')[n % 2]}/{n:02d}.png" for n in range(64)]
    write_files(folder / "my photos", photos(*names))
    (folder / "params.yaml").write_text(apply((ROOT / "params.yaml").read_text(), PARAMS)[0])
    stages = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"].values()
    with own_store(folder), pytest.MonkeyPatch.context() as patch:
        idle = ["cat"]  # in place of the recorder
        patch.setattr(recording, "start_recorder", lambda journal: subprocess.Popen(idle, stdin=subprocess.PIPE))
        patch.setattr(recording, "SETTLING_S", 0)
        for stage in stages:
            _, _, module, *arguments = shlex.split(stage["cmd"])
            import_module(module).main(arguments)
        for journal in waiting_journals():
            deliver(journal)
        yield folder


def test_all_outputs_are_those_of_the_digits_and_a_table_of_the_images(finished):
    table = {"images.parquet"}
    expected = OUTPUTS | {"data/raw": table | {"manifest.json"}, "data/normalized": OUTPUTS["data/normalized"] | table}
    assert {out: {path.name for path in Path(out).iterdir()} for out in OUTPUTS} == expected


def test_each_test_image_is_predicted_under_the_path_of_its_file(finished):
    meta = read_meta(Path("data/normalized"))
    test = read_split(Path("data/normalized"), "test", meta)
    table = pd.read_parquet("reports/evaluate/predictions.parquet")
    assert table["index"].tolist() == list(range(32))
    files = {path.relative_to("my photos").as_posix() for path in Path("my photos/test").rglob("*.png")}
    assert set(table["path"]) == files
    for index, path, label in table[["index", "path", "label"]].itertuples(index=False):
        assert meta.class_names[label] == path.split("/")[2]
        assert np.array_equal(test.images[index], decode(Path("my photos", path).read_bytes(), meta.preprocessing))
    wrong = pd.read_csv("reports/evaluate/misclassified.csv")
    assert wrong["path"].tolist() == table["path"][wrong["index"]].tolist()
    assert set(wrong["path"]) <= files


def test_the_page_states_the_sha256_of_the_weights_and_of_each_split(finished):
    text = words(Tags(Path("reports/evaluate/report.html").read_text(encoding="utf-8")).text)
    lineage = text.partition("Lineage SHA-256 of the model's weights, and of the data: ")[2]
    places = {"weights": "models/classifier/weights"} | {f"{name} split": f"data/normalized/{name}" for name in SPLITS}
    hashes = {name: sha256_of(Path(f"{place}.safetensors")) for name, place in places.items()}
    assert lineage.startswith(" ".join(f"{name} {known}" for name, known in hashes.items()))
    assert "lenet5 on my photos" in text


def test_make_repro_ends_with_the_accuracy_the_page_and_what_to_type_next(finished):
    command = ["make", "--no-print-directory", "--dry-run", "--assume-old=setup", "repro"]
    alone = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS")}  # of make test
    recipe = subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True, check=True).stdout
    program, *arguments = shlex.split(recipe.splitlines()[-1])
    assert program == ".venv/bin/python"
    done = subprocess.run(
        [sys.executable, *arguments], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    metrics = json.loads(Path("reports/evaluate/metrics.json").read_text())
    (run,) = all_runs()
    lines = done.stdout.splitlines()
    assert lines[1].startswith(f"test accuracy  {metrics['test/accuracy']:.2%} on my photos (95% interval ")
    assert f"id {run.info.run_id[:8]}" in done.stdout
    assert "  classifier predict IMAGE ...    use the model" in lines[lines.index("next") :]
    assert lines[-1].split() == ["on", "one", "page", (finished / "reports/evaluate/report.html").as_uri()]
