"""The tutorial's lines, a live line and a line per epoch on terminals alone, and the copy for the record."""

import os
import pty
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from classifier.training.checkpoint import Work
from classifier.training.console import Console
from classifier.training.history import HistoryRow
from tests.samples import ROOT, train_params

ROWS = [
    HistoryRow(2000, 1, 8000, 0.001, 2.182, seconds=2.0),
    HistoryRow(12500, 1, 50000, 0.001, None, 2.0, seconds=8.0),
    HistoryRow(14000, 2, 56000, 0.001, 1.2819, seconds=10.0),
    HistoryRow(25000, 2, 100_000, 0.0005, None, 1.2, 1.3, 0.55, seconds=20.0),
]


def show(lines=None, rows=ROWS, seeds=(0,), **values):
    params = train_params(epochs=2, log_every=2000, seeds=len(seeds), **values)
    with Console(params, 12500, [] if lines is None else lines) as console:
        for row in rows:
            for seed in seeds:
                console.show(seed, row)


def test_lines_are_those_of_the_tutorial(capsys):
    show()
    assert capsys.readouterr().out.splitlines() == [
        "[1,  2000] loss: 2.182",
        "[2,  1500] loss: 1.282",
        "[2] validation loss: 1.300 accuracy: 55.00%",
    ]


def test_all_lines_are_kept(capsys):
    lines = []
    show(lines)
    assert lines == capsys.readouterr().out.splitlines()


def test_an_epoch_of_many_windows_has_eight_lines_with_the_mean_of_theirs(capsys):
    with Console(train_params(epochs=1, log_every=10), 320, []) as console:
        for window in range(1, 33):
            console.show(0, HistoryRow(10 * window, 1, 320 * window, 0.1, float(window)))
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"[1, {40 * line:5d}] loss: {4 * line - 1.5:.3f}" for line in range(1, 9)]


def test_lines_of_several_seeds_begin_with_the_seed_and_end_with_their_mean(capsys):
    show(seeds=(7, 8), rows=[ROWS[0]])
    assert capsys.readouterr().out.splitlines() == ["seed 7 [1,  2000] loss: 2.182", "seed 8 [1,  2000] loss: 2.182"]
    with Console(train_params(epochs=2, log_every=2000, seeds=2), 12500, []) as console:
        console.show(7, ROWS[-1])
        console.show(8, replace(ROWS[-1], validation_accuracy=0.65))
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "2 seeds: mean validation accuracy 60.00% (95% interval 0.00% to 100.00%)"


def test_rows_of_before_an_interruption_are_kept_and_not_printed_again(capsys):
    lines = []
    show(lines, rows=[replace(ROWS[0], again=True), *ROWS[1:]])
    assert capsys.readouterr().out.splitlines() == lines[1:]
    assert lines[0] == "[1,  2000] loss: 2.182"


@pytest.mark.parametrize(
    ("files", "said"), [([], "starts again"), (["000000000400-a", "000000000660-b"], "resumes from step 660")]
)
def test_an_interrupted_training_says_where_it_resumes(tmp_path, capsys, files, said):
    (tmp_path / "seed-0").mkdir()
    for name in files:
        (tmp_path / "seed-0" / f"{name}.safetensors").touch()
    with pytest.raises(KeyboardInterrupt), Console(train_params(), 10, [], Work("key", tmp_path, 10)):
        raise KeyboardInterrupt
    assert capsys.readouterr().err == f"stopped; dvc repro {said}\n"


def test_a_terminal_gets_a_live_line_and_a_line_per_epoch():
    text = on_terminal("from tests.training.test_console import show; show()")
    assert "training starts" in text or "epoch 1/2" in text
    (line,) = re.findall(r"epoch 2/2  loss.*images/s", text)
    assert line == "epoch 2/2  loss 1.200  validation 1.300  55.00%  rate 0.0005    4,167 images/s", (
        "of the epoch alone"
    )
    assert "[1,  2000] loss: 2.182" not in text


def test_the_live_line_says_how_long_it_takes():
    console = Console(train_params(epochs=2, log_every=2000), 12500, [])
    console.show(0, replace(ROWS[0], again=True))
    console.show(0, ROWS[2])
    left = (25000 - 14000) / ((14000 - 2000) / (10 - 2))
    assert console._progress() == f"epoch 2/2  step 14,000  loss 1.282  rate 0.001  6,000 images/s  {left:.0f} s left"


def on_terminal(script):
    """What the script prints on a terminal of 80 columns."""
    leader, follower = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80", "TERM": "xterm"}
    subprocess.run([sys.executable, "-c", script], stdout=follower, check=True, env=environment)
    os.close(follower)
    text = b""
    while chunk := _read(leader):
        text += chunk
    return text.decode()


def _read(descriptor):
    try:
        return os.read(descriptor, 65536)
    except OSError:  # what Linux says at the end of a closed terminal
        return b""


def test_on_a_terminal_each_seed_has_a_line_when_it_ends():
    text = on_terminal("from tests.training.test_console import show; show(seeds=(7, 8))")
    lines = [line for line in text.replace("\r", "\n").splitlines() if "validation 1.300" in line]
    assert [re.sub(r"\x1b\[[0-9;?]*\w", "", line) for line in lines] == [
        f"seed {seed}  loss 1.200  validation 1.300  55.00%" for seed in (7, 8)
    ]
    assert "2 seeds: mean validation accuracy 55.00%" in text
