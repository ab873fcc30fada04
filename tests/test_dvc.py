"""What we know of DVC beyond its public interface, tried on the installed version."""

import json
import os
import subprocess
from contextlib import chdir

import dvc
import pytest

from classifier.repository.dvc import (
    RWLOCK,
    TRIED,
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
    was_signalled,
)
from classifier.repository.git import Repository, git, git_line
from classifier.repository.lockfile import LOCK, read_lock
from classifier.repository.repair import repair

CHANGED = f"DVC {dvc.__version__} differs from {TRIED}, the last version that this was tried with"


@pytest.fixture
def project(workspace):
    run("init", "--no-scm")
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
    assert was_signalled(output) == signalled, f"{CHANGED}: {output!r}"


def test_a_stage_is_reached_whether_it_runs_or_not(project):
    stages(project, normalize="touch out.normalize", train="touch out.train", evaluate="exit 1")
    for _ in range(2):
        _, output = run("repro")
        assert reached("train", output), f"{CHANGED}: {output!r}"
        assert reached("evaluate", output), f"{CHANGED}: {output!r}"
    stages(project, normalize="exit 1", train="touch out.train")
    assert not reached("train", run("repro", "--force")[1])


def test_a_complaint_is_the_stages_last_line_or_dvcs_own_words(project):
    stages(project, train="echo first; echo train: the disk is full >&2; exit 1")
    for options in ((), ("--quiet",)):
        lines = run("repro", *options)[1].decode().splitlines()
        assert complaint(lines) == "train: the disk is full", f"{CHANGED}: {lines}"
    lines = run("repro", "nothing")[1].decode().splitlines()
    assert complaint(lines).startswith("Stage 'nothing' not found"), f"{CHANGED}: {lines}"
    lines = run("pull")[1].decode().splitlines()
    assert complaint(lines).startswith("failed to pull data from the cloud"), f"{CHANGED}: {lines}"
    assert complaint([]) == "DVC failed and said nothing"


def test_while_the_project_is_locked_dvc_waits(project):
    stages(project, train="touch out.train")
    with locked() as ours:
        assert ours
        code, output = run("repro")
        assert (code != 0, b"Unable to acquire lock" in output) == (True, True), f"{CHANGED}: {output!r}"
    assert run("repro")[0] == 0


def test_a_lock_that_a_killed_dvc_left_is_removed(project):
    stages(project, train=f"cp {RWLOCK} left; touch out.train")
    assert run("repro")[0] == 0
    (project / "left").rename(RWLOCK)
    said = repair()
    assert [line.endswith(", which is gone: removed") for line in said] == [True], f"{CHANGED}: {said}"


def test_a_lock_file_is_read_as_dvc_reads_it(project):
    stages(project, train="touch out.train")
    assert run("repro")[0] == 0
    assert reads(LOCK), CHANGED
    LOCK.write_text("schema: '2.0'\nstages: 1\n")
    assert not reads(LOCK)
    assert run("status")[0] != 0, CHANGED


def test_the_cache_is_where_dvc_has_it(project, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("cache")
    for folder in (project / ".dvc/cache", elsewhere):
        if folder == elsewhere:
            run("cache", "dir", str(elsewhere))
        assert cache(project).resolve() == folder == type(folder)(os.fsdecode(run("cache", "dir")[1]).strip()), CHANGED


def test_experiments_and_the_cache_are_laid_out_as_we_read_them(workspace):
    git(workspace, "init", "--quiet")
    run("init")
    stages(workspace, train="mkdir -p out.train/sub && echo 1 > out.train/a && echo 2 > out.train/sub/b")
    git(workspace, "add", "--all")
    git(workspace, "-c", "user.name=a", "-c", "user.email=b", "commit", "--quiet", "--message", "x")
    code, output = run("exp", "run", "--name", "first-1")
    assert code == 0, output
    found = git_line(workspace, "for-each-ref", "--format=%(refname)", experiment_refs("first-*"))
    assert found.rpartition("/")[2] == "first-1", CHANGED
    folder = cache(workspace)
    listed = listing_in(folder, read_lock().outputs["out.train"])
    assert {name: place_in(folder, md5).read_text() for name, md5 in listed.items()} == {"a": "1\n", "sub/b": "2\n"}


def test_a_dvc_that_we_start_needs_no_user_name_and_no_outer_dvc(project):
    inner = {"DVC_ROOT": "/nowhere", "DVC_EXP_NAME": "outer", "USER": ""}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in inner.items():
            patch.setenv(name, value)
        environment = dvc_environment()
    assert environment["USER"]
    assert not {name for name in environment if name.startswith("DVC_") and name in inner}


def test_a_model_of_a_project_in_a_subfolder_is_found_by_its_git_tag(workspace):
    """By the names that `Repository` gives, from a folder that knows neither git nor DVC."""
    top, project, user = (workspace / name for name in ("repository", "repository/teams/vision", "user"))
    project.mkdir(parents=True)
    user.mkdir()
    git(top, "init", "--quiet")
    with chdir(project):
        run("init", "--subdir")
        stages(project, train="mkdir out.train && touch out.train/weights")
        pipeline = json.loads((project / "dvc.yaml").read_text())
        pipeline |= {"artifacts": {"classifier": {"path": "out.train", "type": "model"}}}
        (project / "dvc.yaml").write_text(json.dumps(pipeline))
        run("remote", "add", "--default", "folder", str(workspace / "remote"))
        run("repro")
        assert run("push")[0] == 0
        repository = Repository.of(project)
    tag = f"{repository.artifact('classifier')}@v1.0.0"
    git(top, "add", "--all")
    for command in (["commit", "--quiet"], ["tag", "--annotate", tag]):
        git(top, "-c", "user.name=a", "-c", "user.email=b", *command, "--message", "results")
    with chdir(user):
        for options in (
            ["artifacts", "get", str(top), tag.split("@")[0].replace("=", ":"), "--rev", "v1.0.0", "--out", "1"],
            ["get", str(top), repository.path("out.train"), "--rev", tag, "--out", "2"],
        ):
            code, output = run(*options)
            assert code == 0, f"{CHANGED}: {output!r}"
    assert [path.name for path in sorted(user.glob("*/*"))] == ["weights", "weights"]
