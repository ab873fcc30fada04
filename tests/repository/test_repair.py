"""What a killed DVC leaves behind is repaired; what is whole, or in use, is left alone."""

import json
import os
import shutil
import subprocess
import sys

import psutil
import pytest
from dvc.schema import COMPILED_LOCKFILE_SCHEMA
from ruamel.yaml import YAML

from classifier.repository.dvc import RWLOCK
from classifier.repository.lockfile import LOCK, read_lock
from classifier.repository.repair import repair
from tests.samples import ROOT


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A repository with this one's dvc.lock committed."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "dvc.lock", LOCK)
    for command in ("init -q -b master", "add .", "-c user.name=a -c user.email=b commit -qm lock"):
        subprocess.run(["git", *command.split()], check=True)
    RWLOCK.parent.mkdir(parents=True)
    return tmp_path


def held_by(pid):
    return json.dumps({"write": {"/x/data/raw": {"pid": pid, "cmd": "/bin/dvc repro"}}, "read": {}})


def test_nothing_is_repaired_where_all_is_well(project):
    assert repair() == []
    LOCK.write_text("schema: '2.0'\nstages: {}\n")  # whole, and other than the last commit
    assert repair() == []
    assert LOCK.read_text() == "schema: '2.0'\nstages: {}\n"


def test_nothing_is_repaired_where_dvc_never_ran(project):
    shutil.rmtree(".dvc")
    LOCK.write_text("stages: [")
    assert repair() == []


def test_dvc_lock_truncated_at_any_byte_becomes_one_that_dvc_reads(project):
    content = LOCK.read_bytes()
    repaired = 0
    for cut in range(0, len(content), 61):
        LOCK.write_bytes(content[:cut])
        said = repair()
        repaired += bool(said)
        assert all("restored from the last commit" in line for line in said)
        COMPILED_LOCKFILE_SCHEMA(YAML(typ="safe").load(LOCK))
        assert LOCK.read_bytes() == content[:cut] if not said else content
    assert repaired > 20


def test_without_a_commit_of_it_dvc_writes_it_again(project):
    subprocess.run(["git", "rm", "-q", "--cached", "dvc.lock"], check=True)
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=b", "commit", "-qm", "none"], check=True)
    LOCK.write_text("stages: [")
    assert repair() == ["dvc.lock was truncated when DVC was killed: removed, dvc repro writes it again"]
    assert not LOCK.exists()


def test_a_lock_of_a_process_that_is_another_now_is_removed(project):
    """Though it has to do with DVC."""
    command = [sys.executable, "-c", "import time; time.sleep(60)", "dvc.log"]
    with subprocess.Popen(command) as process:
        try:
            RWLOCK.write_text(held_by(process.pid))
            (line,) = repair()
        finally:
            process.kill()
    assert line == f".dvc/tmp/rwlock was held by process {process.pid}, which is gone: removed"
    assert not RWLOCK.exists()


def test_a_lock_of_a_process_that_may_not_be_looked_at_is_left_alone(project, monkeypatch):
    def refuse(process):
        raise psutil.AccessDenied(process.pid)

    monkeypatch.setattr(psutil.Process, "cmdline", refuse)
    RWLOCK.write_text(held_by(os.getpid()))
    assert repair() == []
    assert RWLOCK.exists()


def test_a_truncated_lock_file_is_removed(project):
    RWLOCK.write_text(held_by(1)[:-5])
    assert repair() == [".dvc/tmp/rwlock was truncated when DVC was killed: removed"]


def test_what_a_living_dvc_holds_is_left_alone(project):
    script = project / "dvc"
    script.write_text("import time; time.sleep(60)")
    with subprocess.Popen([sys.executable, str(script), "repro"]) as process:
        try:
            RWLOCK.write_text(held_by(process.pid))
            assert repair() == []
        finally:
            process.kill()
    assert len(repair()) == 1


def test_while_dvc_holds_the_repository_nothing_is_touched(project):
    script = "from zc.lockfile import LockFile; lock = LockFile('.dvc/tmp/lock'); print('held', flush=True); input()"
    LOCK.write_text("stages: [")  # it may be writing just now
    with subprocess.Popen([sys.executable, "-c", script], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout.readline() == "held\n"
        assert repair() == []
        process.communicate("\n")
    assert len(repair()) == 1


def test_a_merge_conflict_is_named_and_left_alone(project):
    """Also where an editor has removed the markers and DVC cannot read what is left."""

    def git(*arguments, check=True):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=b", *arguments], check=check, stdout=-3)

    git("checkout", "-q", "-b", "other")
    base = LOCK.read_text()
    for branch, seed in (("other", 1), ("master", 2)):
        git("checkout", "-q", branch)
        LOCK.write_text(base.replace("seed: 0", f"seed: {seed}"))
        git("commit", "-qam", branch)
    git("merge", "-q", "other", check=False)
    conflicting = LOCK.read_text()
    assert "<<<<<<< HEAD\n" in conflicting
    line = "dvc.lock has merge conflicts, nothing was repaired: git checkout --ours dvc.lock (or --theirs), "
    for text in (conflicting, "stages: ["):
        LOCK.write_text(text)
        assert [said.startswith(line) for said in repair()] == [True]
        assert LOCK.read_text() == text
    git("commit", "-qam", "with markers")
    LOCK.write_text(conflicting)
    assert [said.startswith(line) for said in repair()] == [True]
    with pytest.raises(ValueError, match=r"dvc\.lock has merge conflicts: git checkout --ours"):
        read_lock()
