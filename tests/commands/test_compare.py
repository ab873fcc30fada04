"""What `classifier compare` finds, from runs in a real store."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

from classifier.commands.application import call
from classifier.commands.compare import show, write
from classifier.project.files import sha256_of, write_atomic
from classifier.repository.code_diff import Code, code_diff
from classifier.runs.comparison import compare, disagreements, find_test_images, per_class
from classifier.runs.reading import find_run
from tests.recorded import Workspace
from tests.results import LABELS, NAMES, record, wrong_on

pytestmark = pytest.mark.usefixtures("workspace")


def comparison_of(*runs):
    return compare([find_run(run) for run in runs])


def table(wrong):
    probabilities = np.full((40, 4), 0.1)
    predicted = wrong_on(wrong)
    probabilities[np.arange(40), predicted] = 0.7 + np.arange(40) / 1000
    columns = {f"p_{number}": probabilities[:, number] for number in range(4)}
    return pd.DataFrame({"index": np.arange(40), "label": LABELS, "predicted": predicted, **columns})


def test_per_class_is_the_share_of_a_classs_images_that_are_right():
    found = per_class([table([0, 4]), table([1])], NAMES)
    assert found["name"].tolist() == NAMES
    assert found["images"].tolist() == [10, 10, 10, 10]
    assert found["accuracy_0"].tolist() == [0.8, 1, 1, 1]
    assert found["accuracy_1"].tolist() == [1, 0.9, 1, 1]


def test_disagreements_are_the_images_of_which_not_all_say_the_same_the_surest_first():
    found = disagreements([table([0, 4, 9]), table([0, 7])])  # both are wrong, and the same, on image 0
    assert found["index"].tolist() == [9, 7, 4]
    assert found["predicted_0"].tolist() == [2, 3, 1]
    assert found["predicted_1"].tolist() == [1, 0, 0]
    assert found["probability_0"].tolist() == pytest.approx([0.709, 0.707, 0.704])


def test_params_data_and_environment_that_differ_are_named():
    first = record(0, params={"train.learning_rate": "0.1"}, tags={"mlflow.classifier.env.threads": "1"})
    other = {"mlflow.classifier.env.threads": "2", "dvc.data": "e" * 32 + ".dir"}
    second = record(1, params={"train.augment.shift": "1"}, tags=other)
    found = comparison_of(first, second)
    assert {each.name: each.values for each in found.params} == {
        "train.learning_rate": ["0.1", "0.05"],
        "train.seed": ["0", "1"],
        "train.augment.shift": [None, "1"],
    }
    assert {each.name: each.values for each in found.data} == {"data": ["d" * 32 + ".dir", "e" * 32 + ".dir"]}
    assert {each.name: each.values for each in found.environment} == {"threads": ["1", "2"]}


def test_other_runs_are_tested_against_the_first():
    runs = [record(0, [0]), record(1, range(1, 9)), record(2, [0])]
    results = comparison_of(*runs).results
    assert [(each.first_alone, each.second_alone) for each in results.alone] == [(8, 1), (0, 0)]
    assert results.p_corrected == pytest.approx([2 * results.alone[0].p, 1])
    assert results.class_names == NAMES


def test_curves_are_those_of_the_store():
    found = comparison_of(record(0), record(1))
    assert found.curves == [{"train/running_loss": [(1, 1), (2, 0.5)]}] * 2


def test_different_test_data_are_refused_with_both_digests():
    runs = record(0), record(0, tags={"mlflow.classifier.test_sha256": "b" * 64})
    message = f"runs {runs[0]} and {runs[1]} cannot be compared, their test data differ: {'a' * 64} and {'b' * 64}"
    with pytest.raises(ValueError, match=message):
        comparison_of(*runs)


def test_one_run_alone_or_twice_is_refused():
    run = record(0)
    for runs in ([run], [run, run]):
        with pytest.raises(ValueError, match=f"expected two or more different runs, got {', '.join(runs)}"):
            comparison_of(*runs)


def test_a_run_without_predictions_is_compared_as_far_as_it_goes():
    first, second = record(0), record(0, predictions=False, tags={"git.commit": "b" * 40})
    found = comparison_of(first, second)
    assert found.results is None
    assert found.problems[0].startswith(f"run {second} has no predictions")
    assert "not a git repository" in found.problems[1]
    written, missing = write(found, Path("out"))
    assert ([path.name for path in written], missing) == (["curves.png"], [])


def git(*arguments):
    command = ["git", "-c", "user.name=Test", "-c", "user.email=test@example.org", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def commit(**files):
    for name, text in files.items():
        Path(f"{name}.py").write_text(text)
    git("add", "*.py", "params.yaml")
    git("commit", "-q", "-m", "x")
    return git("rev-parse", "HEAD").strip()


@pytest.fixture
def commits(workspace):
    git("init", "-q")
    Path("params.yaml").write_text("1\n")
    return [commit(a="1\n", b="1\n"), commit(a="2\n")]


def changed(text):
    return [line for line in text.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")]


def test_code_differs_by_commits_and_uncommitted_changes_together(commits):
    Path("b.py").write_text("2\n")
    Path("params.yaml").write_text("2\n")
    patch = git("diff", "--binary", "HEAD").encode()
    first, second = Code(commits[0]), Code(commits[1], patch)
    assert changed(code_diff(first, Code(commits[1]), Path())) == ["-1", "+2"]
    assert changed(code_diff(first, second, Path())) == ["-1", "+2", "-1", "+2"]  # without params.yaml
    assert changed(code_diff(second, Code(commits[1]), Path())) == ["-2", "+1"]
    assert git("status", "--porcelain", "--untracked-files=no").splitlines() == [" M b.py", " M params.yaml"]
    assert code_diff(second, Code(commit(b="2\n")), Path()) == ""  # the same, once committed


def test_a_commit_that_is_not_here_names_what_to_fetch(commits):
    missing = "0" * 39 + "1"
    with pytest.raises(ValueError, match=f"commit {missing} is not in this repository: git fetch origin"):
        code_diff(Code(commits[0]), Code(missing), Path())


def test_a_patch_that_does_not_fit_is_said(commits):
    patch = git("diff", commits[0], commits[1]).encode()
    with pytest.raises(ValueError, match=f"the recorded diff does not fit its commit {commits[1]}"):
        code_diff(Code(commits[0]), Code(commits[1], patch), Path())


def test_the_command_shows_what_the_stages_recorded(commits, capsys):
    """The whole way: two runs are recorded, one after a change of code, and compared by the beginnings of their ids."""

    def printed_by(*arguments):
        capsys.readouterr()
        call(["compare", *arguments])
        return capsys.readouterr().out

    Path(".gitignore").write_text("/.pipeline/\n/data/\n/models/\n/reports/\n/mlflow.db*\n/mlartifacts/\n")
    runs = []
    for seed in (0, 1):
        outputs = Workspace(seed)
        outputs.params = outputs.params.override({"train.seed": seed})
        labels = np.arange(57) % 10
        predicted = labels.copy()
        predicted[seed : seed + 2] = 9
        probabilities = np.eye(10)[predicted] * 0.8 + 0.02
        predictions = pd.DataFrame({"index": np.arange(57), "label": labels, "predicted": predicted})
        predictions = predictions.join(pd.DataFrame(probabilities, columns=[f"p_{number}" for number in range(10)]))
        predictions.to_parquet(outputs.reports / "predictions.parquet", index=False)
        runs.append(outputs.train())
        assert outputs.evaluate() == runs[-1]
        Path("a.py").write_text("3\n")
    found = json.loads(printed_by(*(run[:8] for run in runs), "--json"))
    assert found["params"] == {"train.seed": ["0", "1"]}
    assert ["a.py", 1, 1] in found["code"][0]["files"]
    assert [row["index"] for row in found["disagreements"]] == [0, 2]
    assert found["mcnemar"] == [{"first_alone": 1, "second_alone": 1, "p": 1, "p_corrected": 1}]
    folder = Path(f"reports/compare/{runs[0][:8]}-{runs[1][:8]}")
    names = {"curves.png", "code.diff", "disagreements.csv", "disagreements.png"}
    assert {path.name for path in folder.iterdir()} == names
    assert "\n-2\n+3\n" in (folder / "code.diff").read_text()
    assert [imread(folder / name).ndim for name in names if name.endswith(".png")] == [3, 3]
    assert "the runs disagree on 2 images" in printed_by(*runs)
    assert sha256_of(outputs.data / "test.safetensors") == outputs.data_meta.sha256["test"]
    rows = comparison_of(*runs).runs
    assert find_test_images(rows).shape == (57, 1, 32, 32)
    content, data = (outputs.data / "test.safetensors").read_bytes(), "e" * 32 + ".dir"
    (outputs.data / "test.safetensors").write_bytes(b"other")
    rows["data"] = data
    absent = f"the test images of data {data} are neither in data/normalized nor in DVC's cache: "
    with pytest.raises(FileNotFoundError, match=f"^{absent}dvc fetch --all-commits data/normalized$"):
        find_test_images(rows)
    Path("dvc.lock").write_text(f"stages: {{n: {{outs: [{{path: data/normalized, md5: {data}}}]}}}}")
    with pytest.raises(FileNotFoundError, match=f"^{absent}dvc pull data/normalized$"):
        find_test_images(rows)
    assert "\nmissing: disagreements.png: the test images of data " in printed_by(*runs)

    Path(".dvc").mkdir()
    Path(".dvc/config").write_text("[cache]\n    dir = ../shared\n")
    listed = [{"relpath": name, "md5": md5 * 32} for name, md5 in (("test.safetensors", "f"), ("meta.json", "d"))]
    cached = {"ee/" + "e" * 30 + ".dir": json.dumps(listed).encode(), "ff/" + "f" * 30: content}
    for name, kept in (cached | {"dd/" + "d" * 30: (outputs.data / "meta.json").read_bytes()}).items():
        write_atomic(Path("shared/files/md5") / name, kept)
    assert find_test_images(rows).shape == (57, 1, 32, 32)


def test_values_are_shown_as_they_are(capsys):
    """Whatever rich would make of them."""
    show(comparison_of(*(record(params={"download.dataset": value}) for value in ("[/here]", "[bold]:cold:"))))
    shown = capsys.readouterr().out
    assert "download.dataset  [/here]   [bold]:cold:" in shown
    assert "The same: data; environment; code, from " in shown
