"""A project's life in one piece: trained three times, ranked, compared, promoted, released, and made again."""

import json
import shlex

import pytest

from classifier.project.files import sha256_of
from tests.projects import Project

pytestmark = pytest.mark.slow

TRAININGS = (("0.05", "0"), ("0.05", "1"), ("0.02", "1"))  # learning rate and seed; the last one stays in dvc.lock


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Trained and committed, its data and models pushed to a folder."""
    project = Project(tmp_path_factory.mktemp("project"))
    project.edit_params("epochs: 20", "epochs: 2")
    project.edit_params("min_accuracy_low: 0.95", "min_accuracy_low: 0.1")
    project.edit_params("max_calibration_error: 0.05", "max_calibration_error: 1.0")
    project.edit_params("max_latency_ms: 10", "max_latency_ms: 1000")
    project.run("dvc", "remote", "add", "--default", "team", str(tmp_path_factory.mktemp("remote")))
    project.commit("settings")
    params = (project.folder / "params.yaml").read_text()
    for rate, seed in TRAININGS:
        changed = params.replace("learning_rate: 0.05", f"learning_rate: {rate}", 1)
        before, section, train = changed.partition("\ntrain:\n")
        (project.folder / "params.yaml").write_text(before + section + train.replace("seed: 0", f"seed: {seed}", 1))
        project.repro()
    return project


@pytest.fixture(scope="module")
def runs(project):
    """Their ids, in the order of TRAININGS."""
    return [run_id for (run_id,) in project.query("SELECT run_uuid FROM runs ORDER BY start_time")]


def cli(project, *arguments):
    return project.run("python", "-m", "classifier", *arguments)


def test_seeds_are_a_row_and_another_learning_rate_is_another(project, runs):
    printed = cli(project, "leaderboard", "--html", "reports/board.html", "--json")
    entries = json.loads(printed[printed.index("{") :])["entries"]
    found = {entry["differing"]["train.learning_rate"]: [run["run"] for run in entry["runs"]] for entry in entries}
    assert found == {"0.05": runs[:2], "0.02": runs[2:]}
    assert sorted(entry["verdict"] == "best" for entry in entries) == [False, True]
    assert "Leaderboard" in (project.folder / "reports/board.html").read_text()


def test_runs_are_compared_with_curves_and_images(project, runs):
    printed = cli(project, "compare", runs[0], runs[2], "--output", "reports/two")
    assert "train.learning_rate  0.05" in printed
    assert "missing: " not in printed
    written = {path.name for path in (project.folder / "reports/two").iterdir()}
    assert written == {"curves.png", "disagreements.csv", "disagreements.png"}


def test_a_model_is_promoted_released_fetched_by_its_tag_and_made_again(project, runs, tmp_path):
    assert "promoted: version 1 is classifier@champion" in cli(project, "promote", runs[2])
    project.commit("trained")
    printed = cli(project, "promote", runs[2]).splitlines()
    tag, push, _ = printed[printed.index("to release it:") + 1 :]
    project.git(*shlex.split(tag)[1:])
    project.run(*shlex.split(push))
    for path in ("models/classifier", "data/normalized"):
        project.run("dvc", "get", ".", path, "--rev", "classifier@v1.0.0", "--out", str(tmp_path / path))
        files = [file.relative_to(tmp_path) for file in (tmp_path / path).iterdir()]
        assert len(files) >= 2
        assert all(sha256_of(tmp_path / file) == sha256_of(project.folder / file) for file in files)

    project.run("rm", "-rf", ".dvc/cache", "data", "models")
    verdict = cli(project, "reproduce", runs[2])
    assert f"run {runs[2]} is reproduced, byte-identical: " in verdict
    assert "digits.csv.gz from" not in verdict, "it came from the remote"
