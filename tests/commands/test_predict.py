"""classifier predict: files, folders, patterns and standard input; tables, JSON and CSV; warnings and bad files."""

from __future__ import annotations

import csv
import gc
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.numpy import load_file

from classifier.commands.application import call
from classifier.errors import UserError
from classifier.serving import files
from tests.recorded import own_store
from tests.serving.conftest import png


@pytest.fixture(scope="module")
def project(served, tmp_path_factory):
    """The model's project with originals: good/0.png to 3.png and good/more/4.png, a bad one, and a negative."""
    root = served.copy(tmp_path_factory.mktemp("project") / "project").folder
    images = load_file(root / "data/normalized/test.safetensors")["images"]
    (root / "good/more").mkdir(parents=True)
    for number in range(5):
        place = "more/4" if number == 4 else number
        (root / f"good/{place}.png").write_bytes(png(images[number]))
    (root / "good/.hidden").write_text("not an image")
    (root / "bad.png").write_bytes(png(images[0])[:-40])
    (root / "negative.png").write_bytes(png(255 - images[0]))
    with own_store(root):
        yield root


@pytest.fixture
def cli(project, capsys, monkeypatch):
    """`cli(*arguments)`: exit status, standard output and standard error. Arithmetic stays that of the tests."""
    monkeypatch.setattr("classifier.arithmetic.use", lambda arithmetic: None)
    monkeypatch.chdir(project)

    def cli(*arguments):
        status = 0
        try:
            call(["predict", *map(str, arguments)])
        except SystemExit as stopped:
            status = stopped.code
        return status, *capsys.readouterr()

    return cli


def test_one_image_gets_its_most_probable_classes_with_bars(cli, project):
    status, printed, told = cli("good/0.png")
    assert (status, told) == (0, "")
    rows = [line.split() for line in printed.splitlines()]
    assert [len(row) for row in rows][:1] == [4]
    assert (len(rows), rows[0][0]) == (5, "good/0.png")
    probabilities = [float(line.partition("%")[0].split()[-1]) for line in printed.splitlines()]
    assert probabilities == sorted(probabilities, reverse=True)
    assert rows[0][3] == "#" * round(probabilities[0] / 5)
    assert len(cli("good/0.png", "--top", 2)[1].splitlines()) == 2


def test_folders_patterns_and_files_are_read_in_order_from_where_one_is(cli, project, monkeypatch):
    names = [f"good/{number}.png" for number in range(4)] + ["good/more/4.png"]
    for arguments in (["good"], names, ["good/**/*.png"], ["good/[0-3].png", "good/more"]):
        status, printed, told = cli(*arguments)
        assert (status, told) == (0, ""), arguments
        assert [line.split()[0] for line in printed.splitlines()] == (
            ["good/0.png", *names[1:]] if arguments != ["good/**/*.png"] else sorted(names)
        )
    monkeypatch.chdir(project / "good")
    assert [line.split()[0] for line in cli("more", "0.png")[1].splitlines()] == ["more/4.png", "0.png"]


def test_standard_input_is_a_file(cli, project, monkeypatch):
    content = (project / "good/0.png").read_bytes()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    printed = cli("-", "--json")[1]
    assert json.loads(printed)["predictions"] == [
        row | {"file": "-"} for row in json.loads(cli("good/0.png", "--json")[1])["predictions"]
    ]


def test_a_file_that_cannot_be_read_is_one_line_and_status_1(cli, project):
    (project / "secret").mkdir(exist_ok=True)
    status, printed, told = cli("good/0.png", "bad.png", "good/1.png")
    assert status == 1
    assert [line.split()[0] for line in printed.splitlines()] == ["good/0.png", "good/1.png"]
    assert told.startswith("predict: bad.png: damaged")
    assert len(told.splitlines()) == 1
    answer = json.loads(cli("bad.png", "good/0.png", "--json")[1])
    assert [each["file"] for each in answer["unreadable"]] == ["bad.png"]
    assert [each["file"] for each in answer["predictions"]] == ["good/0.png"]
    with pytest.raises(UserError, match=r"^gone\.png does not exist: allowed are files, folders, patterns and -"):
        cli("gone.png")
    with pytest.raises(UserError, match="contain no files"):
        cli("secret")


def test_garbage_is_collected_although_the_program_begins_without(cli):
    gc.disable()
    try:
        cli("good", "bad.png")
        assert gc.isenabled()
    finally:
        gc.enable()
        gc.unfreeze()


def test_an_image_unlike_the_trainings_is_told_with_its_remedy(cli):
    status, _, told = cli("negative.png")
    assert status == 0
    assert told.startswith("predict: negative.png: unlike the training images: brighter")
    assert told.endswith("; its negative is like them: try --invert\n")
    assert cli("negative.png", "--invert")[2] == ""
    upright = json.loads(cli("good/0.png", "--json")[1])["predictions"][0]
    inverted = json.loads(cli("negative.png", "--invert", "--json")[1])["predictions"][0]
    assert inverted == upright | {"file": "negative.png"}


def test_csv_has_the_probabilities_of_all_classes(cli, project, tmp_path):
    status, printed, told = cli("good", "--csv", tmp_path / "all.csv")
    assert (status, printed, told) == (0, "", "")
    rows = list(csv.DictReader((tmp_path / "all.csv").read_text().splitlines()))
    assert [*rows[0]] == ["file", "predicted", "probability", "warning", *"0123456789"]
    for row in rows:
        assert (
            float(row[row["predicted"]]) == float(row["probability"]) == max(float(row[name]) for name in "0123456789")
        )
        assert sum(float(row[name]) for name in "0123456789") == pytest.approx(1, abs=1e-6)
    assert len(rows) == 5


def test_many_files_are_decoded_by_processes_with_the_same_answers(cli, monkeypatch):
    alone = cli("good", "--json")[1]
    monkeypatch.setattr(files, "FEW", 0)
    monkeypatch.setattr(files, "CHUNK", 2)
    assert cli("good", "--json")[1] == alone


def test_the_model_of_a_run_is_that_of_the_workspace(cli, served):
    ((run_id,),) = served.query("SELECT run_uuid FROM runs")
    expected = cli("good", "--json")[1]
    for reference in ("latest", run_id[:8], "models/classifier"):
        assert cli("good", "--json", "--model", reference)[1] == expected, reference
    for reference, reason in {
        "models:/none@champion": "^there is no models:/none@champion yet: classifier promote latest$",
        "models:/none/1": r"^models:/none/1 is not a model .*: allowed is a model directory, a run's id",
        "models/none": "^models/none is not a model directory: dvc repro trains a model into models/classifier$",
    }.items():
        with pytest.raises(UserError, match=reason):
            cli("good", "--model", reference)


def test_where_there_is_no_model_the_command_says_what_makes_one(cli, project):
    (project / "empty").mkdir(exist_ok=True)
    with pytest.raises(FileNotFoundError, match=r"meta\.json does not exist: run dvc repro train"):
        cli("good", "--model", "empty")
    assert Path.cwd() == project
