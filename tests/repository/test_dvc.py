"""What we know of DVC beyond its public interface, tried on the installed version, which a failure names."""

import json
import os
import shutil
import subprocess
from contextlib import chdir
from pathlib import Path

import pytest

from classifier.repository.dvc import (
    RWLOCK,
    cache,
    complaint,
    dvc_command,
    dvc_environment,
    experiment_refs,
    listing_in,
    locked,
    place_in,
    reached,
    reads,
    share_cache,
    was_signalled,
)
from classifier.repository.git import git, git_line
from classifier.repository.lockfile import LOCK, read_lock
from classifier.repository.repair import repair
from tests.tried import changed


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    folder = tmp_path_factory.mktemp("template")
    with chdir(folder):
        run("init", "--no-scm")
    return folder


@pytest.fixture
def project(workspace, template):
    """The current folder, of a user who has typed `dvc init --no-scm`."""
    shutil.copytree(template, workspace, dirs_exist_ok=True)
    return workspace


def run(*arguments, env=None):
    """Exit status and output of a DVC command in the current folder."""
    done = subprocess.run(dvc_command(*arguments), env=env or dvc_environment(), stdout=-1, stderr=-2)
    return done.returncode, done.stdout


def stages(folder, **commands):
    """Stages that run one after the other."""
    names = list(commands)
    found = {
        name: {"cmd": command, "outs": [f"out.{name}"], "deps": [f"out.{before}"] if before else []}
        for name, command, before in zip(names, commands.values(), [None, *names], strict=False)
    }
    (folder / "dvc.yaml").write_text(json.dumps({"stages": found}))


@pytest.mark.parametrize(
    ("command", "signalled"),
    [
        ("kill -9 $$", True),
        ("kill -15 $$", True),
        ("(sh -c 'kill -9 $$'); exit $?", True),  # the shell outlives what was killed, and says 137
        ("exit 1", False),
        ("exit 128", False),
    ],
)
def test_a_stage_that_a_signal_ended_is_told_from_one_that_failed(project, command, signalled):
    stages(project, train=command)
    code, output = run("repro")
    assert code != 0
    assert was_signalled(output) == signalled, changed("dvc", f"its words for a stage that failed: {output!r}")


def test_a_stage_is_reached_whether_it_runs_or_not(project):
    stages(project, normalize="touch out.normalize", train="touch out.train", evaluate="exit 1")
    for _ in range(2):
        _, output = run("repro")
        for stage in ("train", "evaluate"):
            assert reached(stage, output), changed("dvc", f"its words for a stage that it comes to: {output!r}")
    stages(project, normalize="exit 1", train="touch out.train")
    assert not reached("train", run("repro", "--force")[1])


def test_a_complaint_is_the_stages_last_line_or_dvcs_own_words(project):
    stages(project, train="echo first; echo train: the disk is full >&2; exit 1")
    for command, expected in (
        (["repro"], "train: the disk is full"),
        (["repro", "--quiet"], "train: the disk is full"),
        (["repro", "nothing"], "Stage 'nothing' not found"),
        (["pull"], "failed to pull data from the cloud"),
    ):
        lines = run(*command)[1].decode().splitlines()
        assert complaint(lines).startswith(expected), changed("dvc", f"how it says why it failed: {lines}")
    assert complaint([]) == "DVC failed without a message"


def test_while_the_project_is_locked_dvc_waits(project):
    stages(project, train="touch out.train")
    with locked() as ours:
        assert ours
        code, output = run("repro")
        assert code != 0, changed("dvc", "how a project is locked")
        assert b"Unable to acquire lock" in output, changed("dvc", f"how a project is locked: {output!r}")
    assert run("repro")[0] == 0


def test_a_lock_that_a_killed_dvc_left_is_removed(project):
    stages(project, train=f"cp {RWLOCK} left; touch out.train")
    assert run("repro")[0] == 0
    (project / "left").rename(RWLOCK)
    said = repair()
    assert [line.endswith(", which is gone: removed") for line in said] == [True], changed("dvc", f"{RWLOCK}: {said}")


def test_a_lock_file_is_read_as_dvc_reads_it(project):
    stages(project, train="touch out.train")
    assert run("repro")[0] == 0
    assert reads(LOCK), changed("dvc", "the schema of dvc.lock")
    LOCK.write_text("schema: '2.0'\nstages: 1\n")
    assert (reads(LOCK), run("status")[0] == 0) == (False, False), changed("dvc", "the schema of dvc.lock")


def test_the_cache_is_where_dvc_has_it(project, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("cache")
    for folder in (project / ".dvc/cache", elsewhere):
        if folder == elsewhere:
            run("cache", "dir", str(elsewhere))
        found = Path(os.fsdecode(run("cache", "dir")[1]).strip())
        assert cache(project).resolve() == folder == found, changed("dvc", "the configuration of the cache")


def test_a_checkout_has_the_cache_and_the_remotes_of_the_project(project, template, tmp_path_factory):
    run("remote", "add", "--default", "one", "../remote")
    run("remote", "add", "--local", "two", "s3://bucket")
    checkout = tmp_path_factory.mktemp("checkout")
    shutil.copytree(template, checkout, dirs_exist_ok=True)
    with chdir(checkout):
        run("remote", "add", "one", "/an/earlier/place")
        share_cache(project, checkout)
        remotes = dict(line.split()[:2] for line in run("remote", "list")[1].decode().splitlines())
        found = Path(os.fsdecode(run("cache", "dir")[1]).strip()), Path(remotes["one"]), remotes["two"]
    assert found == (project / ".dvc/cache", project.parent / "remote", "s3://bucket"), changed(
        "dvc", "its configuration"
    )


def test_experiments_and_the_cache_are_laid_out_as_we_read_them(workspace):
    git(workspace, "init", "--quiet")
    run("init")
    train = "mkdir -p out.train/sub && echo 1 > out.train/a && echo 2 > out.train/sub/b && env > variables"
    stages(workspace, train=train)
    git(workspace, "add", "--all")
    git(workspace, "-c", "user.name=a", "-c", "user.email=b", "commit", "--quiet", "--message", "x")
    code, output = run("exp", "run", "--name", "first-1")
    assert code == 0, output
    found = git_line(workspace, "for-each-ref", "--format=%(refname)", experiment_refs("first-*"))
    assert found.rpartition("/")[2] == "first-1", changed("dvc", "where experiments are")
    folder = cache(workspace)
    listed = listing_in(folder, read_lock().outputs["out.train"])
    contents = {name: place_in(folder, md5).read_text() for name, md5 in listed.items()}
    assert contents == {"a": "1\n", "sub/b": "2\n"}, changed("dvc", "the layout of its cache")
    lines = Path("variables").read_text().splitlines()
    given = {line.partition("=")[0] for line in lines if line.startswith("DVC_")} - dvc_environment().keys()
    assert given == OF_STAGES, changed("dvc", "the variables of its stages")


OF_STAGES = {"DVC_ROOT", "DVC_STAGE", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"}  # variables


def test_a_dvc_that_we_start_needs_no_user_name_and_no_outer_dvc(monkeypatch):
    for name in OF_STAGES:
        monkeypatch.setenv(name, "outer")
    monkeypatch.setenv("USER", "")
    environment = dvc_environment()
    assert environment["USER"]
    assert not OF_STAGES & environment.keys()
