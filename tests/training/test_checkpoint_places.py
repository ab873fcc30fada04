"""Where a training's checkpoints lie: its place, and the fingerprint by which it finds it again."""

import os
import shutil
import time
from pathlib import Path

import pytest

from classifier.data.dataset import read_meta, write_meta
from classifier.networks import names
from classifier.networks.manifest import write_none
from classifier.params import TrainParams
from classifier.project import files, resuming
from classifier.project.ownership import claim, release
from classifier.project.resuming import ABANDONED_S
from classifier.training.checkpoint import (
    CHECKPOINTS,
    checkpointed,
    fingerprint_of,
)
from stages.train import prepare
from tests.samples import ROOT, StoppedError, train_params, write_digits


def test_a_place_is_kept_while_training_fails_and_removed_when_it_succeeds(workspace):
    def fail():
        with checkpointed("f" * 64, 10) as work:
            places.append(work)
            (work.folder / "seed-0").mkdir()
            (work.folder / "seed-0/.1-a.safetensors.x.tmp").touch()  # a process was killed while it wrote
            raise StoppedError

    places = []
    with pytest.raises(StoppedError):
        fail()
    (first,) = places
    with checkpointed("f" * 64, 10) as second:
        assert (second.folder, second.key) == (first.folder, first.key)
        assert not list(second.folder.rglob("*.tmp"))
    assert not second.folder.exists()
    with checkpointed("f" * 64, 10) as third:
        assert third.key != first.key


def test_another_fingerprint_and_another_process_at_the_same_have_places_of_their_own(workspace):
    with checkpointed("a" * 64, 10) as one, checkpointed("b" * 64, 10) as two:
        assert one.folder.parent == two.folder.parent == workspace / CHECKPOINTS
        assert one.folder != two.folder
        with checkpointed("a" * 64, 10) as three:
            assert three.folder not in (one.folder, two.folder)


def test_a_training_that_was_killed_is_found_in_whatever_place_it_had(workspace):
    with checkpointed("a" * 64, 10) as one:
        two = checkpointed("a" * 64, 10)
        killed = two.__enter__()
    assert not two.__exit__(StoppedError, StoppedError(), None)
    assert one.folder != killed.folder
    with checkpointed("a" * 64, 10) as resumed:
        assert (resumed.folder, resumed.key) == (killed.folder, killed.key)


def test_turned_off_there_is_no_folder(workspace):
    with checkpointed("a" * 64, 0) as work:
        assert work.folder is None
        assert work.of_seed(0) is None
    assert not (workspace / CHECKPOINTS).exists()


def test_the_fingerprint_covers_params_data_and_environment_but_not_how_often_it_is_saved(tmp_path):
    data, params = tmp_path / "data", train_params()
    write_digits(data)
    environment, stage = {"threads": "2", "torch": "1"}, tmp_path / "stage.py"
    stage.write_text("# a stage\n")
    fingerprint = fingerprint_of(params, data, environment, stage)
    assert fingerprint == fingerprint_of(train_params(checkpoint_every=7), data, dict(environment), stage)
    others = [
        fingerprint_of(train_params(seed=1), data, environment, stage),
        fingerprint_of(params, data, environment | {"threads": "1"}, stage),
        fingerprint_of(params, data, environment | {"torch": "2"}, stage),
    ]
    write_meta(data, read_meta(data).model_copy(update={"mean": [0.25]}))
    others.append(fingerprint_of(params, data, environment, stage))
    assert len({fingerprint, *others}) == 5


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # of values that are not allowed
def test_the_fingerprint_covers_all_params_but_those_that_change_no_bit(tmp_path):
    data, params = tmp_path / "data", train_params()
    write_digits(data)

    def fingerprint(**values):
        return fingerprint_of(params.model_copy(update=values), data, {}, Path(__file__))

    same = {name for name in TrainParams.model_fields if fingerprint(**{name: "another"}) == fingerprint()}
    assert same == {"checkpoint_every", "processes", "data"}


def test_the_fingerprint_covers_the_code_of_the_network_and_no_other(tmp_path, monkeypatch):
    data, own = tmp_path / "data", tmp_path / "networks"
    write_digits(data)
    (own / "blocks").mkdir(parents=True)
    monkeypatch.setattr(names, "own_folder", lambda: own)

    def fingerprints():
        networks = ("lenet5", "resnet18", "timm/resnet10t", "mine:net")
        return [fingerprint_of(train_params(network=network), data, {}, Path(__file__)) for network in networks]

    before = fingerprints()
    for path in (own / "mine.py", own / "blocks/deep.py"):  # a module may import others
        path.touch()
        *others, mine = fingerprints()
        assert others == before[:3]
        assert mine != before[3]
        before = [*others, mine]
    monkeypatch.setattr(names, "version", {"torchvision": "1", "timm": "2"}.__getitem__)
    now = fingerprints()
    assert [after == earlier for after, earlier in zip(now, before, strict=True)] == [True, False, False, True]
    monkeypatch.setattr(names, "version", {"torchvision": "1", "timm": "3"}.__getitem__)
    assert [after == earlier for after, earlier in zip(fingerprints(), now, strict=True)] == [True, True, False, True]


def test_the_fingerprint_covers_pretrained_weights_if_params_ask_for_some(tmp_path):
    data, found = tmp_path / "data", []
    write_digits(data)
    for name in ("one", "another"):
        write_none(tmp_path, name)  # a manifest, which has the hash of the weights
        both = (train_params(pretrained="file"), train_params())
        found.append([prepare(params, data, tmp_path).fingerprint for params in both])
    assert [one == another for one, another in zip(*found, strict=True)] == [False, True]


def test_the_fingerprint_covers_the_code_of_the_package_and_of_the_stage(tmp_path, monkeypatch):
    data, package, stage = tmp_path / "data", tmp_path / "classifier", tmp_path / "train.py"
    write_digits(data)
    shutil.copytree(Path(files.__file__).parent, package)
    shutil.copy(ROOT / "stages/train.py", stage)
    monkeypatch.setattr(resuming, "PACKAGE", package)
    (package / "deeper/still").mkdir(parents=True)
    found = {fingerprint_of(train_params(), data, {}, stage)}
    for path in (package / "augmentation.py", stage, package / "deeper/still/new.py"):
        with path.open("a") as file:
            file.write("# changed\n")
        found.add(fingerprint_of(train_params(), data, {}, stage))
    assert len(found) == 4


def test_what_nobody_went_on_with_for_long_goes_with_the_next_success(workspace):
    root, long_ago = workspace / CHECKPOINTS, time.time() - ABANDONED_S - 60
    for name in ("abandoned-0", "owned-0", "recent-0"):
        (root / name).mkdir(parents=True)
        (root / name / "run").touch()
    handle = claim(root / "owned-0")
    for path in (root / "abandoned-0/run", root / "owned-0/run", root / "owned-0/lock"):
        os.utime(path, (long_ago, long_ago))
    with checkpointed("f" * 64, 10):
        assert len(list(root.iterdir())) == 4
    assert {path.name for path in root.iterdir()} == {"owned-0", "recent-0"}
    release(handle)
