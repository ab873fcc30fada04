"""Training that is broken off anywhere and begun again ends with the bytes of one that was not."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from itertools import count, product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save

from classifier.networks.model import Classifier, LeNet5
from classifier.project import files
from classifier.project.files import sha256
from classifier.training import loop
from classifier.training.checkpoint import (
    NO_WORK,
    Checkpoints,
    Work,
)
from classifier.training.engine import DivergedError
from classifier.training.history import HistoryRow
from classifier.training.loop import fit
from classifier.training.seeds import train_seeds
from tests.faults.kernel import can_refuse
from tests.samples import ROOT, StoppedError, digits_split, stop_after, train_params, write_digits

CPU = torch.device("cpu")
TRAIN, VALIDATION = digits_split(46), digits_split(20, start=46)
TINY = {"epochs": 2, "batch_size": 10, "log_every": 2}  # 5 steps an epoch, the last of 6 images; windows of 2, 2, 1
EPOCHS, PER_EPOCH, WINDOW = 2, 5, 2


class Snapshots(Checkpoints):
    """Copies its folder after each checkpoint: what a process leaves that is killed there."""

    def save(self, step, *arguments):
        super().save(step, *arguments)
        self.wait()
        shutil.copytree(self.folder, self.folder.with_name(f"killed-{step}"))


def trained(params, checkpoints=None, report=None):
    """Bytes of the weights, and the rows."""
    torch.manual_seed(params.seed)
    classifier, rows = Classifier(LeNet5(1, 10), [0.24], [0.33]), []
    fit(classifier, TRAIN, VALIDATION, params, CPU, report or (lambda seed, row: rows.append(row)), checkpoints)
    return save({name: value.contiguous() for name, value in classifier.network.state_dict().items()}), rows


@pytest.mark.parametrize(
    ("optimizer", "schedule", "augmentation"),
    [
        *product(
            [{"momentum": 0.0}, {"nesterov": True}, {"optimizer": "adamw", "learning_rate": 0.003}],
            ["constant", "one_cycle", "cosine"],
            [{}, {"shift": 2, "rotation": 10.0, "scale": 0.1}],
        )
    ],
)
def test_resumed_at_every_step_it_gives_the_same_bytes_and_rows(tmp_path, optimizer, schedule, augmentation):
    params = train_params(schedule=schedule, **TINY, **optimizer, **augmentation)
    whole = trained(params)
    assert trained(params, Snapshots(tmp_path / "seed-0", every=1)) == whole
    assert len(list(tmp_path.glob("killed-*"))) == 10
    for step in range(1, 11):
        assert trained(params, Checkpoints(tmp_path / f"killed-{step}", every=3)) == whole, step


def test_broken_off_between_two_checkpoints_it_gives_the_same_rows_once(tmp_path):
    params = train_params(**TINY)
    whole = trained(params)
    for stop in range(1, 6):  # rows
        checkpoints = Checkpoints(tmp_path / str(stop), every=3)
        with pytest.raises(StoppedError):
            trained(params, checkpoints, stop_after(stop))
        checkpoints.wait()
        assert trained(params, Checkpoints(tmp_path / str(stop), every=3)) == whole


def test_training_may_be_resumed_again_and_again(tmp_path):
    params = train_params(**TINY)
    whole, stops = trained(params), 0
    while True:

        class Deadly(Checkpoints):
            def save(self, *arguments):
                super().save(*arguments)
                self.wait()
                raise StoppedError

        try:
            assert trained(params, Deadly(tmp_path / "seed-0", every=1)) == whole
            break
        except StoppedError:
            stops += 1
    assert stops == 10


@pytest.fixture
def killed(tmp_path):
    """A training's folder, killed after step 7, with the checkpoints of steps 6 and 7."""
    params = train_params(**TINY)
    whole = trained(params, Snapshots(tmp_path / "seed-0", every=1))
    return tmp_path / "killed-7", params, whole


def newest(folder):
    return sorted(folder.glob("*-*.safetensors"))[-1]


def test_the_last_two_are_kept_under_the_hash_of_their_bytes_without_a_pickle(killed):
    folder, _, _ = killed
    kept = sorted(folder.glob("*.safetensors"))
    assert [int(path.name.split("-")[0]) for path in kept] == [6, 7]
    for path in kept:
        assert path.stem.split("-")[1] == sha256(path.read_bytes())
        assert {"weights/fc1.bias", "optimizer/fc1.bias/momentum_buffer", "sums/loss"} < set(load_file(path))
        rows = bytes(load_file(path)["rows"].tolist()).splitlines()
        assert [json.loads(line)["step"] for line in rows] == [2, 4, 5, 7][: len(rows)]
        assert len(rows) == {6: 3, 7: 4}[int(path.name.split("-")[0])], "each has all rows of its own"
    assert sorted(folder.iterdir()) == kept


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def empty(path):
    path.write_bytes(b"")


def other(path):
    """Whole, but not what it says it is."""
    content = save({"weights/fc1.bias": torch.zeros(1)}, {"position": "{}"})
    path.unlink()
    (path.parent / f"000000000007-{sha256(content)}.safetensors").write_bytes(content)


def pickled(path):
    path.unlink()
    torch.save({"weights/fc1.bias": torch.zeros(1)}, path)  # noqa: TID251, what the test refuses


@pytest.mark.parametrize("damage", [flip, cut, empty, other, pickled])
def test_a_damaged_newest_is_named_and_the_one_before_is_used(killed, capsys, damage):
    folder, params, whole = killed
    damage(newest(folder))
    named = str(newest(folder))
    checkpoints = Checkpoints(folder, every=1)
    loaded = checkpoints.load(EPOCHS, PER_EPOCH, WINDOW)
    assert loaded.position.step == 6
    assert f"checkpoint {named} is corrupt" in capsys.readouterr().err
    assert not Path(named).exists()
    assert trained(params, Checkpoints(folder, every=1)) == whole


def test_when_all_are_damaged_training_begins_anew(killed, capsys):
    folder, params, whole = killed
    for path in folder.glob("*.safetensors"):
        flip(path)
    assert trained(params, Checkpoints(folder, every=1)) == whole
    assert capsys.readouterr().err.count("is corrupt") == 2


def forge(path, rows=None, **position):
    """The checkpoint with another position or other rows, under the name that its new hash asks for."""
    tensors = load_file(path)
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    known = json.loads(header["__metadata__"]["position"])
    if rows is not None:
        tensors["rows"] = rows
    content = save(tensors, {"position": json.dumps(known | position)})
    path.unlink()
    forged = path.with_name(f"{path.name.split('-')[0]}-{sha256(content)}.safetensors")
    forged.write_bytes(content)
    return forged


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"step": -1}, "greater than or equal to 1"),
        ({"step": 0}, "greater than or equal to 1"),
        ({"step": 10**40}, "less than 1000000000000"),
        ({"step": 11, "window": 1}, "it is at step 11 of a training of 10"),
        ({"step": 10, "window": 0}, "its 4 rows do not fit 10 steps"),
        ({"step": 6}, "at step 6 it has 0 steps in the window, instead of 1"),
        ({"window": -1}, "greater than or equal to 0"),
        ({"window": 2}, "at step 7 it has 2 steps in the window, instead of 0"),
        ({"rows": torch.zeros(0, dtype=torch.uint8)}, "its 0 rows do not fit 7 steps"),
        ({"rows": torch.zeros(3)}, "it has no rows"),
        ({"rows": torch.tensor(list(b"{}\n"), dtype=torch.uint8)}, "Field required"),
    ],
)
def test_what_cannot_be_is_named_and_the_one_before_is_used(killed, capsys, values, said):
    """Hash and all, where training could stand nowhere in its plan, or has no such rows there."""
    folder, params, whole = killed
    forged = forge(newest(folder), **values)
    assert trained(params, Checkpoints(folder, every=1)) == whole
    line, resumed = capsys.readouterr().err.splitlines()
    assert line.startswith(f"checkpoint {forged} is corrupt (")
    assert line.endswith("): removed")
    assert said in line
    assert resumed.startswith("resuming at epoch ")


def test_rows_of_other_steps_are_not_those_of_the_checkpoint(killed, capsys):
    folder, params, whole = killed
    rows = bytes(load_file(newest(folder))["rows"].tolist()).replace(b'"step": 4,', b'"step": 3,')
    forge(newest(folder), rows=torch.tensor(list(rows), dtype=torch.uint8))
    assert trained(params, Checkpoints(folder, every=1)) == whole
    assert "its 4 rows do not fit 7 steps" in capsys.readouterr().err


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_file_ends_training_and_nothing_is_removed(killed, make):
    folder, params, _ = killed
    path = newest(folder)
    path.unlink()
    make(path)
    before = contents(folder)
    with pytest.raises(
        OSError, match=rf"^checkpoint {path} cannot be read \(.*run again, or remove it to resume from"
    ) as error:
        trained(params, Checkpoints(folder, every=1))
    assert "\n" not in str(error.value)
    assert contents(folder) == before
    assert path.exists()


READ_ERROR = """
import sys
from pathlib import Path
from classifier.training.checkpoint import Checkpoints
from tests.faults.kernel import refuse

refuse(sys.argv[1], error=int(sys.argv[2]))
try:
    Checkpoints(Path(sys.argv[3]), 1).load(2, 5, 2)
except OSError as error:
    print(error)
"""


@pytest.mark.skipif(not can_refuse(), reason="no filter of system calls here")
@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        ("read", errno.EIO, "checkpoint {newest} cannot be read ([Errno 5] Input/output error), nothing was removed"),
        ("getdents64", errno.EACCES, "[Errno 13] Permission denied: '{folder}'"),  # `glob` would find no file
    ],
)
def test_an_error_of_the_disk_while_reading_ends_training_and_nothing_is_removed(killed, call, error, said):
    folder, params, whole = killed
    before = contents(folder)
    command = [sys.executable, "-c", READ_ERROR, call, str(error), str(folder)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.stdout.startswith(said.format(newest=newest(folder), folder=folder)), ended
    assert contents(folder) == before
    assert trained(params, Checkpoints(folder, every=1)) == whole


def test_what_the_disk_gives_back_is_compared_before_a_checkpoint_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(files.os, "fsync", lambda handle: damage_open_file(handle))

    def damage_open_file(handle):
        path = Path(f"/proc/self/fd/{handle}").resolve()
        if path.name.endswith(".tmp"):
            path.write_bytes(b"something else")

    with pytest.raises(OSError, match="the data read back differs from what was written"):
        trained(train_params(**TINY), Checkpoints(tmp_path / "seed-0", every=1))
    assert not list((tmp_path / "seed-0").iterdir())


def test_a_step_that_is_not_finite_leaves_the_checkpoint_before_it(tmp_path):
    params = train_params(epochs=8, batch_size=10, log_every=5, learning_rate=100.0, weight_decay=1.0)
    checkpoints = Checkpoints(tmp_path / "seed-0", every=1)
    with pytest.raises(DivergedError, match="stopped before its update") as error:
        trained(params, checkpoints)
    checkpoints.wait()
    bad_step = int(re.search(r"at step (\d+)", str(error.value))[1])
    assert bad_step > 2
    kept = sorted((tmp_path / "seed-0").glob("*.safetensors"))
    assert [int(path.name.split("-")[0]) for path in kept] == [bad_step - 2, bad_step - 1]
    assert all(value.isfinite().all() for path in kept for value in load_file(path).values())


def test_an_error_of_the_disk_stops_training_though_another_thread_meets_it(tmp_path):
    folder = tmp_path / "seed-0"
    checkpoints = Checkpoints(folder, every=1)

    def take_the_place(seed, row):
        checkpoints.wait()
        if folder.is_dir():
            shutil.rmtree(folder)
        folder.write_text("a file in its place")

    with pytest.raises(OSError, match="seed-0"):
        trained(train_params(**TINY), checkpoints, take_the_place)


def test_seeds_resume_each_from_its_own_checkpoint(tmp_path, monkeypatch):
    torch.set_num_threads(2)
    try:
        write_digits(tmp_path / "data")
        params = train_params(seeds=3, epochs=2, batch_size=400, log_every=1, checkpoint_every=1)

        def results(report, work=NO_WORK):
            trained = train_seeds(tmp_path / "data", params, CPU, report, work)
            return {
                seed: (each.rows, [value.tolist() for value in each.classifier.network.state_dict().values()])
                for seed, each in trained.items()
            }

        whole = results(lambda *row: None)
        work = Work("key", tmp_path / "work", 1)
        with pytest.raises(StoppedError):
            results(stop_after(5), work)
        assert list((tmp_path / "work").glob("seed-*/*.safetensors"))
        reported = []
        assert results(lambda *row: reported.append(row), work) == whole
        assert sorted(reported, key=lambda row: (row[0], row[1].step)) == [
            (seed, row) for seed, (rows, _) in sorted(whole.items()) for row in rows
        ]
    finally:
        torch.set_num_threads(1)


def test_the_time_between_a_kill_and_the_resume_is_not_training_time(tmp_path, monkeypatch):
    """The clock goes on by a second each time it is read: at the start, and at each row."""
    params = train_params(epochs=4, batch_size=30, log_every=1, checkpoint_every=1)  # two rows an epoch

    def seconds_at(start, report=None):
        clock = count(start)
        monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: next(clock)))
        return [row.seconds for row in trained(params, Checkpoints(tmp_path / "seed-0", every=1), report)[1]]

    with pytest.raises(StoppedError):
        seconds_at(0, stop_after(4))
    assert seconds_at(100_000) == [1, 2, 3, 4, 5, 6, 7, 8]


def test_rows_survive_as_they_were(tmp_path):
    row = HistoryRow(3, 1, 30, 0.1, 1 / 3, 0.1 + 0.2, None, None)  # of one epoch of three steps
    checkpoints = Checkpoints(tmp_path / "seed-0", every=1)
    checkpoints.add(row)
    checkpoints.save(3, 0, {"sums/found_inf": torch.zeros(())})
    checkpoints.wait()
    assert Checkpoints(tmp_path / "seed-0", every=1).load(1, 3, 3).rows == [row]


def test_of_several_models_every_window_has_a_row_of_each(tmp_path):
    checkpoints = Checkpoints(tmp_path / "seed-0", every=1)
    rows = [HistoryRow(step, 1, step, 0.1) for step in (2, 2, 2, 3, 3, 3)]
    for row in rows:
        checkpoints.add(row)
    checkpoints.save(3, 0, {"sums/found_inf": torch.zeros(())})
    checkpoints.wait()
    assert Checkpoints(tmp_path / "seed-0", every=1).load(1, 3, 2, models=3).rows == rows
    assert Checkpoints(tmp_path / "seed-0", every=1).load(1, 3, 2, models=2) is None
