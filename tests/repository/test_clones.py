"""Clones of a workspace with uncommitted changes, and the processes in them; real git and DVC."""

import json
import os
import pwd
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from classifier.repository.clones import (
    ROOT_VARIABLE,
    Baseline,
    Clone,
    applicable_experiments,
    experiment_arguments,
    stop_processes,
)
from classifier.repository.code import LARGEST_NEW_FILE
from classifier.repository.dvc import dvc_environment


@pytest.fixture
def project(workspace):
    """A commit, then a changed file, a new one and a lock that git does not have yet."""
    for arguments in (["git", "init", "-q"], ["dvc", "init", "-q"]):
        subprocess.run([*arguments], check=True, env={**os.environ, "PATH": path()}, cwd=workspace)
    (workspace / "code.py").write_text("one\n")
    (workspace / ".gitignore").write_text("/data/\n/.pipeline/\n")
    git(workspace, "add", ".")
    git(workspace, "commit", "-qm", "first")
    (workspace / "code.py").write_text("two\n")
    (workspace / "new.py").write_bytes(b"\xff\n")
    (workspace / "dvc.lock").write_text("schema: '2.0'\n")
    return workspace


def path():
    return f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"  # noqa: PTH120


def git(folder, *arguments):
    command = ["git", "-c", "user.name=a", "-c", "user.email=b", *arguments]
    return subprocess.run(command, check=True, cwd=folder, capture_output=True, text=True).stdout


def test_a_clone_holds_the_uncommitted_workspace_and_leaves_it_alone(project):
    before = git(project, "status", "--porcelain=v2")
    clone = Clone(Baseline.of(project), project / ".pipeline/clone")
    clone.make()
    assert (clone.project / "code.py").read_text() == "two\n"
    assert (clone.project / "new.py").read_bytes() == b"\xff\n"
    assert (clone.project / "dvc.lock").read_text() == "schema: '2.0'\n"
    assert git(clone.folder, "rev-parse", "HEAD") == git(project, "rev-parse", "HEAD")
    cache = subprocess.run(
        ["dvc", "cache", "dir"],
        cwd=clone.project,
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path()},
    )
    assert cache.stdout.strip() == str(project / ".dvc/cache")
    assert git(project, "status", "--porcelain=v2") == before
    assert git(project, "stash", "list") == ""


def test_reset_undoes_what_an_experiment_changed_and_keeps_its_data(project):
    clone = Clone(Baseline.of(project), project / ".pipeline/clone")
    clone.make()
    (clone.project / "data").mkdir()
    (clone.project / "data/image").write_text("kept")
    (clone.project / "code.py").write_text("three\n")
    (clone.project / "left").write_text("over")
    git(clone.folder, "add", "left")
    clone.reset()
    assert (clone.project / "code.py").read_text() == "two\n"
    assert not (clone.project / "left").exists()
    assert (clone.project / "data/image").read_text() == "kept"


def test_what_the_diff_leaves_out_is_in_the_clone_but_not_in_its_index(project):
    """Large files, secrets, links, a repository within this one."""
    for name, content in {".env": "TOKEN=old", "gone.py": "old", "sub/token.txt": "old", "dvc.lock": "old"}.items():
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).write_text(content)
    git(project, "add", ".")
    git(project, "commit", "-qm", "second")
    (project / "gone.py").unlink()
    (project / ".env").write_text("TOKEN=new")
    (project / "sub/token.txt").unlink()
    (project / "sub/token.txt").symlink_to("../.env")
    (project / "dvc.lock").write_text("new")
    large = bytes(LARGEST_NEW_FILE + 1)
    (project / "own images").mkdir()
    (project / "own images/größe.bin").write_bytes(large)
    (project / "link").symlink_to("nowhere")
    git(project / "own images", "init", "-q", "library")
    (project / "own images/library/code.py").write_text("used")
    clone = Clone(Baseline.of(project), project / ".pipeline/clone")
    clone.make()
    copy = clone.project / "own images/größe.bin"
    assert copy.read_bytes() == large
    assert (clone.project / ".env").read_text() == "TOKEN=new"
    assert (clone.project / "sub/token.txt").readlink() == Path("../.env")
    assert (clone.project / "dvc.lock").read_text() == "new"
    assert not (clone.project / "gone.py").exists()
    assert "TOKEN=new" not in git(clone.folder, "diff", "--cached", "HEAD")
    assert "größe" not in git(clone.folder, "-c", "core.quotePath=false", "ls-files")
    assert (clone.project / "link").readlink() == Path("nowhere")
    assert (clone.project / "own images/library/code.py").read_text() == "used"
    copy.write_bytes(b"changed by an experiment")
    (clone.project / "gone.py").write_text("by an experiment")
    clone.reset()
    assert not (clone.project / "gone.py").exists()
    assert copy.read_bytes() == large == (project / "own images/größe.bin").read_bytes()


def test_a_dvc_that_we_start_has_a_users_name_and_nothing_of_the_dvc_around_us(monkeypatch):
    for name in ("LOGNAME", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("USER", "")

    def unknown(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("DVC_ROOT", "DVC_EXP_NAME", "GIT_DIR", "DVC_SITE_CACHE_DIR"):
        monkeypatch.setenv(name, "/there")
    variables = dvc_environment()
    assert variables["USER"] == str(os.getuid())
    assert {name for name in variables if variables[name] == "/there"} == {"DVC_SITE_CACHE_DIR"}
    monkeypatch.setenv("USER", "ada")
    assert dvc_environment()["USER"] == "ada"


def test_a_project_in_a_subfolder_of_its_repository(workspace, monkeypatch):
    git(workspace, "init", "-q")
    root = workspace / "sub"
    root.mkdir()
    subprocess.run(["dvc", "init", "-q", "--subdir"], check=True, env={**os.environ, "PATH": path()}, cwd=root)
    (root / "code.py").write_text("one\n")
    git(workspace, "add", ".")
    git(workspace, "commit", "-qm", "first")
    (root / "code.py").write_text("two\n")
    monkeypatch.chdir(root)
    clone = Clone(Baseline.of(root), workspace / "clone")
    clone.make()
    assert (clone.project / "code.py").read_text() == "two\n"
    assert clone.project == workspace / "clone/sub"


def test_experiments_are_collected_by_their_name(project):
    clone = Clone(Baseline.of(project), project / ".pipeline/clone")
    clone.make()
    for name in ("sweep-1-1", "sweep-1-2", "other"):
        git(clone.folder, "update-ref", f"refs/exps/ab/cdef/{name}", "HEAD")
    clone.collect("sweep-1-*")
    clone.collect("missing")
    refs = git(project, "for-each-ref", "--format=%(refname)", "refs/exps").split()
    assert refs == ["refs/exps/ab/cdef/sweep-1-1", "refs/exps/ab/cdef/sweep-1-2"]


def test_an_experiment_can_be_applied_while_its_outputs_are_in_the_cache(project):
    def dvc(*arguments):
        return subprocess.run(["dvc", *arguments], check=True, env={**os.environ, "PATH": path()}, cwd=project)

    code = "import sys; from pathlib import Path; Path('out').mkdir(); Path('out/a').write_text(sys.argv[1])"
    (project / "make.py").write_text(code)
    (project / "params.yaml").write_text("p: 0\n")
    (project / "dvc.lock").unlink()
    (project / "dvc.yaml").write_text("stages: {a: {cmd: 'python make.py ${p}', params: [p], outs: [out]}}")
    git(project, "add", ".")
    git(project, "commit", "-qm", "second")
    for number in (1, 2):
        dvc("exp", "run", "--quiet", "--name", f"sweep-1-{number}", "--set-param", f"p={number}")
    git(project, "update-ref", "refs/exps/ab/cdef/sweep-1-3", "HEAD")  # without dvc.lock
    for number, content in enumerate(["", "a: [\n", "{}", "[]", "stages:\n", "stages: [1]\n"], 4):
        write_experiment(project, f"sweep-1-{number}", content)  # a dvc.lock that is none
    assert applicable_experiments(project, "sweep-1-*") == {"sweep-1-1", "sweep-1-2"}
    assert applicable_experiments(project, "sweep-2-*") == set()
    dvc("gc", "--workspace", "--force", "--quiet")
    assert applicable_experiments(project, "sweep-1-*") == {"sweep-1-2"}
    (project / ".dvc/cache/files/md5/c8/1e728d9d4c2f636f067f89cc14862c").unlink()  # the MD5 of "2"
    assert applicable_experiments(project, "sweep-1-*") == set()


def write_experiment(project, name, lock):
    blob = subprocess.run(
        ["git", "hash-object", "-w", "--stdin"], input=lock, cwd=project, check=True, capture_output=True, text=True
    ).stdout.strip()
    index = {**os.environ, "GIT_INDEX_FILE": str(project / ".git/experiment")}
    entry = ["git", "update-index", "--add", "--cacheinfo", f"100644,{blob},dvc.lock"]
    subprocess.run(entry, cwd=project, check=True, env=index)
    tree = subprocess.run(["git", "write-tree"], cwd=project, check=True, env=index, capture_output=True, text=True)
    commit = git(project, "commit-tree", "-m", "x", tree.stdout.strip()).strip()
    git(project, "update-ref", f"refs/exps/ab/cdef/{name}", commit)


def test_a_project_without_a_commit_is_refused(workspace):
    git(workspace, "init", "-q")
    with pytest.raises(ValueError, match="DVC's experiments start from a commit"):
        Baseline.of(workspace)


def test_values_are_written_so_that_dvc_reads_them_back():
    values = {"a": 1e-05, "b": "sgd", "c": None, "d": [0.5], "e": True, "f": "../my data", "g": "null"}
    assert experiment_arguments("name", values)[:4] == ["exp", "run", "--name", "name"]
    assert experiment_arguments("name", values)[5::2] == [
        *("a=1e-05", "b=sgd", "c=null", "d=[0.5]", "e=true", f"f={json.dumps('../my data')}", 'g="null"')
    ]


def test_processes_of_clones_are_ended_and_no_others(tmp_path):
    sleep = [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"]
    deaf = [
        sys.executable,
        "-c",
        "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(60)",
    ]
    (tmp_path / "clones/0").mkdir(parents=True)
    ours = {**os.environ, ROOT_VARIABLE: str(tmp_path)}
    theirs = {name: value for name, value in os.environ.items() if name != ROOT_VARIABLE}

    def start(command, environment, folder):
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE)
        process.stdout.readline()
        return process

    inside, elsewhere, shell = (
        start(sleep, ours, tmp_path / "clones/0"),
        start(sleep, ours, tmp_path),
        start(sleep, theirs, tmp_path / "clones"),
    )
    try:
        began = time.monotonic()
        stop_processes(tmp_path / "clones")
        assert time.monotonic() - began < 10
        assert inside.wait(5) == -15
        assert elsewhere.poll() is None
        assert shell.poll() is None
    finally:
        for process in (inside, elsewhere, shell):
            process.kill()
            process.communicate()
    stubborn = start(deaf, ours, tmp_path / "clones/0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("classifier.project.processes.ENDING_S", 0.5)
        stop_processes(tmp_path / "clones")
    assert stubborn.wait(5) == -9
    stubborn.communicate()
    assert not psutil.pid_exists(stubborn.pid)
