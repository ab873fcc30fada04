"""The board, from runs in a real store."""

import io
import json
import subprocess
import sys
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from scipy.stats import t

from classifier.commands.application import call
from classifier.commands.leaderboard import show
from classifier.runs.leaderboard import groups, leaderboard, results
from classifier.runs.leaderboard_page import page
from classifier.runs.reading import all_runs
from classifier.runs.significance import mcnemar
from tests.recorded import SeedsWorkspace, Workspace
from tests.results import TEST, record, record_seeds
from tests.samples import ROOT

pytestmark = pytest.mark.usefixtures("workspace")


def board(**options):
    return leaderboard(all_runs(), **options)


def test_seeds_of_the_same_params_data_and_code_are_one_entry():
    runs = [record(seed, range(wrong)) for seed, wrong in enumerate([2, 4, 9])]
    (entry,) = board().entries
    assert [(each.run, each.seed, each.accuracy) for each in entry.results] == [
        (runs[0], "0", 0.95),
        (runs[1], "1", 0.9),
        (runs[2], "2", 0.775),
    ]
    assert entry.run == runs[1]  # the median
    assert entry.mean == pytest.approx(0.875)
    assert entry.std == pytest.approx(0.0901388, rel=1e-5)
    reach = t.ppf(0.975, 2) * entry.std / 3**0.5
    assert (entry.low, entry.high) == (pytest.approx(0.875 - reach), 1)  # no accuracy is above 1
    assert entry.trained_s == 2.5  # the run itself ended after 9 s
    assert entry.parameters == 61706
    assert entry.verdict == "best"


def test_where_the_median_runs_predictions_are_gone_the_next_one_is_tested():
    record(0, params={"train.epochs": "9"})
    runs = [record(seed, range(wrong), predictions=seed != 1) for seed, wrong in enumerate([9, 10, 12])]
    _, entry = board().entries
    assert entry.run == runs[2]  # of the two beside the median the lower one
    assert (entry.best_alone, entry.here_alone) == (12, 0)


def test_one_seed_has_no_interval():
    record(0, [1])
    (entry,) = board().entries
    assert (entry.std, entry.low, entry.high) == (None, None, None)


@pytest.mark.parametrize(
    "other",
    [
        {"params": {"train.learning_rate": "0.1"}},
        {"params": {"train.momentum": "0.9"}},
        {"tags": {"dvc.data": "e" * 32 + ".dir"}},
        {"tags": {"git.commit": "b" * 40}},
        {"patch": b"diff --git a/classifier/model.py b/classifier/model.py\n"},
    ],
)
def test_what_may_change_a_result_makes_another_entry(other):
    record(0)
    record(1, **other)
    assert len(board().entries) == 2


@pytest.mark.parametrize(
    "other",
    [
        {"params": {"train.log_every": "5"}},
        {"params": {"train.seeds": "1"}},
        {"params": {"evaluate.batch_size": "7"}},
        {"tags": {"mlflow.classifier.env.threads": "2"}},
        {"patch": b"diff --git a/params.yaml b/params.yaml\n"},
        {"patch": b"diff --git a/README.md b/README.md\n"},
    ],
)
def test_what_cannot_change_a_result_does_not(other):
    record(0)
    record(1, **other)
    (entry,) = board().entries
    assert len(entry.results) == 2


def test_a_seed_that_was_repeated_counts_once_with_its_newest_run():
    record(0, [1, 2])
    newest = record(0, [1])
    (entry,) = board().entries
    assert [each.run for each in entry.results] == [newest]


def test_the_board_names_params_that_differ():
    record(0)
    record(0, params={"train.learning_rate": "0.1", "train.augment.shift": "2"})
    found = board()
    assert found.columns == ["train.learning_rate", "train.augment.shift"]
    assert sorted(entry.value("train.augment.shift") for entry in found.entries) == ["-", "2"]


def test_a_difference_is_real_only_after_the_correction():
    best = record(0, [0])
    record(0, range(1, 9), params={"train.epochs": "3"})
    record(0, range(1, 26), params={"train.epochs": "4"})
    first, slightly, clearly = board().entries
    assert (first.run, first.verdict, first.p) == (best, "best", None)
    assert (slightly.best_alone, slightly.here_alone) == (8, 1)
    assert slightly.p == pytest.approx(mcnemar(8, 1))
    assert slightly.p < 0.05
    assert slightly.p_corrected == slightly.p  # the larger of two
    assert clearly.p_corrected == pytest.approx(2 * mcnemar(25, 1))
    assert (slightly.verdict, clearly.verdict) == ("worse", "worse")


def test_holm_counts_the_tests():
    record(0, [0])
    for number in range(3):
        record(0, range(1, 9), params={"train.epochs": str(number + 3)})
    assert {entry.verdict for entry in board().entries[1:]} == {"not significant"}
    assert board().entries[1].p_corrected == pytest.approx(3 * mcnemar(8, 1))


def test_a_lower_mean_may_hide_a_better_model():
    for seed, wrong in enumerate([20, 20, 0]):
        record(seed, range(wrong), accuracy=0.9)  # what its metric says is what ranks it
    record(0, [0], params={"train.epochs": "3"}, accuracy=0.8)
    assert board().entries[1].verdict == "better"


def test_other_test_data_are_shown_and_not_compared():
    record(0, tags={"mlflow.classifier.test_sha256": "b" * 64, "dvc.data": "e" * 32 + ".dir"})
    record(0, [1, 2, 3])
    found = board()
    assert [(entry.verdict, entry.p) for entry in found.entries] == [("best", None), ("other test data", None)]
    assert found.test_data == TEST  # the newest run's
    assert board(test_data="bbb").entries[0].mean == 1
    with pytest.raises(ValueError, match=rf"no run has test data cc; recorded are {TEST}, {'b' * 64}"):
        board(test_data="cc")


def test_without_predictions_there_is_no_test():
    record(0)
    record(0, [1], predictions=False, params={"train.epochs": "3"})
    assert board().entries[1].verdict == "no predictions"


def test_a_best_without_predictions_is_said():
    record(0, predictions=False)
    record(0, [1], params={"train.epochs": "3"})
    assert board().entries[1].verdict == "the best has no predictions"


def test_what_is_no_result_is_not_on_the_board():
    record(0, tags={"mlflow.classifier.evaluated": ""})  # its evaluation was killed
    with pytest.raises(ValueError, match="no evaluated run: dvc repro makes one"):
        board()


def test_nested_runs_count_as_seeds_and_their_parent_not_at_all():
    _, *children = record_seeds()
    alone = record(6, [1, 2, 3])
    (entry,) = board().entries
    assert [each.run for each in entry.results] == [*children, alone]
    assert entry.run == alone  # the lower of the two that have predictions; those of seed 4 are not kept


def test_a_sweep_is_no_result_and_its_runs_can_be_shown_alone():
    sweep = record(0, tags={"sweep": "train.seed=0,1"}, params={"train.epochs": "9"})
    runs = [record(seed, [seed], tags={"mlflow.parentRunId": sweep}) for seed in (0, 1)]
    record(0, params={"train.epochs": "3"})
    assert len(results(all_runs())) == 3
    (entry,) = board(sweep=sweep).entries
    assert [each.run for each in entry.results] == runs
    with pytest.raises(ValueError, match=f"no evaluated run in sweep {runs[0]}"):
        board(sweep=runs[0])


def test_groups_take_code_by_content(tmp_path):
    """In a repository a commit of dvc.lock changes nothing, and what was uncommitted is the same once committed."""

    def git(*arguments):
        command = ["git", "-c", "user.name=Test", "-c", "user.email=test@example.org", *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    def commit():
        git("add", "classifier", "stages", "dvc.yaml", "dvc.lock")
        git("commit", "-q", "-m", "x")
        return {"git.commit": git("rev-parse", "HEAD").strip()}

    for name in ("classifier/model.py", "stages/train.py", "dvc.yaml", "dvc.lock"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1\n")
    git("init", "-q")
    record(0, tags=commit())
    (tmp_path / "dvc.lock").write_text("2\n")
    tags = commit()
    record(1, tags=tags)
    assert len(groups(results(all_runs()))) == 1
    (tmp_path / "classifier/model.py").write_text("2\n")
    record(2, tags=tags, patch=git("diff", "HEAD").encode())
    record(3, tags=commit())
    assert sorted(len(entry.results) for entry in groups(results(all_runs()))) == [2, 2]
    assert git("status", "--porcelain", "--untracked-files=no") == ""


def test_code_is_known_by_its_tag_without_reading_diffs():
    same, other = "c" * 64, "d" * 64
    record(0, tags={"git.commit": "a" * 40, "git.dirty": "true", "mlflow.classifier.code": same})
    record(1, tags={"git.commit": "b" * 40, "git.dirty": "false", "mlflow.classifier.code": same})
    record(2, tags={"git.commit": "b" * 40, "git.dirty": "true", "mlflow.classifier.code": other})
    found = groups(results(all_runs()))
    assert {len(entry.results): entry.code_id for entry in found} == {2: same, 1: other}
    assert {entry.code for entry in found} <= {"aaaaaaa+cccccccc", "bbbbbbb", "bbbbbbb+dddddddd"}


def test_runs_whose_changes_are_unknown_are_seeds_of_no_entry():
    tags = {"git.commit": "a" * 40, "git.dirty": "", "git.problem": "git add: a filter failed"}
    for seed in (0, 1):
        record(seed, tags=tags)
        record(seed, tags={"git.commit": "a" * 40})
    found = groups(results(all_runs()))
    assert sorted(len(entry.results) for entry in found) == [1, 1, 2]
    assert len({entry.code for entry in found}) == 3


class Tags(HTMLParser):
    """What a page is made of."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_data(self, data):
        self.text += data


def test_the_page_fetches_nothing_and_escapes_what_it_shows():
    record(0)
    record(0, [1], params={"train.epochs": "<script>alert(1)</script>"})
    text = page(board())
    found = Tags(text)
    assert "script" not in found.tags
    assert "<script>alert(1)</script>" in found.text
    assert not {"srcset", "action"} & {name for name, _ in found.attributes}
    (source,) = (value for name, value in found.attributes if name == "src")
    kind, _, picture = source.partition(",")
    assert kind == "data:image/png;base64"
    assert Image.open(io.BytesIO(b64decode(picture))).size == (8 * 150, round(1.44 * 150))
    assert {value for name, value in found.attributes if name == "href"} == {"data:,"}
    assert "url(" not in text
    assert "@import" not in text
    assert found.tags.count("tr") == 3
    assert found.tags.count("details") == 2
    assert page(board()) == text


def test_the_command_shows_what_the_stages_recorded(capsys):
    """The whole way: journals of a run and of two seeds are delivered, and the board is printed and written."""
    for outputs in (Workspace(), SeedsWorkspace()):
        outputs.train()
        outputs.evaluate()
    capsys.readouterr()
    call(["leaderboard", "--json"])
    (entry,) = json.loads(capsys.readouterr().out)["entries"]  # both have the same params but for the seed
    assert [(run["seed"], run["accuracy"]) for run in entry["runs"]] == [("0", 0.9), ("4", 0.8), ("5", 0.9)]
    assert entry["mean"] == pytest.approx(2.6 / 3)
    call(["leaderboard", "--html", "board.html"])
    assert "86.67%" in capsys.readouterr().out
    assert "86.67%" in Path("board.html").read_text()


def test_the_command_says_in_one_line_that_there_is_nothing(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    said = subprocess.run([sys.executable, "-m", "classifier", "leaderboard"], capture_output=True, text=True)
    assert (said.returncode, said.stdout) == (1, "")
    assert said.stderr == "classifier: the experiment 'classifier' has no run, dvc repro makes one\n"


def test_values_are_shown_as_they_are(capsys):
    """Whatever rich would make of them."""
    for value in ("[/here]", "[bold]:cold:"):
        record(params={"download.dataset": value})
    show(board())
    shown = capsys.readouterr().out
    assert "[/here]" in shown
    assert "[bold]:cold:" in shown
