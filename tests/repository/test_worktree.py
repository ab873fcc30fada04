"""A recorded state beside the workspace, with real git and DVC's real configuration."""

import os
import subprocess
import tempfile
from pathlib import Path

import pytest
from dvc.config import Config

from classifier.repository.code import git_state
from classifier.repository.dvc import dvc_command, dvc_environment
from classifier.repository.worktree import lacks_images, share_images, worktree


def git(*arguments):
    user = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
    return subprocess.run(["git", *user, *arguments], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A repository with a DVC project of one commit; temporary folders lie beside it."""
    folder, temporary = tmp_path / "project", tmp_path / "temporary"
    (folder / ".dvc").mkdir(parents=True)
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.chdir(folder)
    (folder / ".dvc/config").write_text("['remote \"old\"']\n    url = /nowhere\n")
    (folder / ".dvc/.gitignore").write_text("/config.local\n/cache\n/tmp\n")
    (folder / "code.py").write_text("first\n")
    git("init", "-q", "-b", "main")
    git("add", "--all")
    git("commit", "-q", "-m", "first")
    return folder


COMMANDS = (["status", "--porcelain"], ["branch", "-a"], ["stash", "list"], ["log"], ["worktree", "list"])


def state():
    """What a person would miss."""
    return [git(*command) for command in COMMANDS]


def test_commit_and_diff_are_checked_out_beside_a_workspace_that_stays(root):
    (root / "code.py").write_text("changed\n")
    (root / "new.py").write_bytes(bytes(range(256)))
    recorded = git_state()
    git("commit", "-q", "-am", "later")
    (root / "code.py").write_text("later still\n")
    before = state()
    with worktree(root, recorded.commit, recorded.diff) as project:
        assert (project / "code.py").read_text() == "changed\n"
        assert (project / "new.py").read_bytes() == bytes(range(256))
        assert project.name == root.name
        assert state() == before
    assert not project.parent.exists()
    assert state() == before


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_it_is_removed_whatever_happens(root, error):
    with pytest.raises(error), worktree(root, "HEAD", b"") as project:
        raise error
    assert not project.parent.exists()


def test_keep_leaves_it_and_names_it_after_an_error_too(root, capsys):
    with pytest.raises(OSError, match="no data"), worktree(root, "HEAD", b"", keep=True) as project:
        raise OSError("no data")
    assert capsys.readouterr().err == f"worktree: {project}; to remove it: rm -rf {project.parent}\n"
    assert (project / "code.py").exists()


def test_a_commit_that_is_not_there_says_what_to_fetch(root):
    commit = "0123456789abcdef0123456789abcdef01234567"
    with pytest.raises(ValueError, match=f"git fetch origin {commit}"), worktree(root, commit, b""):
        pass
    assert not list((root.parent / "temporary").iterdir())


def test_a_diff_that_does_not_fit_is_said_in_one_line(root):
    diff = b"--- a/code.py\n+++ b/code.py\n@@ -1 +1 @@\n-another\n+changed\n"
    with pytest.raises(ValueError, match=r"does not fit its commit [0-9a-f]{40}: git apply: .*patch failed") as error:
        worktree(root, "HEAD", diff).__enter__()
    assert "\n" not in str(error.value)
    assert not list((root.parent / "temporary").iterdir())


def test_no_hook_runs(root):
    hook = root / ".git/hooks/post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch {root / 'hooked'}\n")
    hook.chmod(0o755)
    with worktree(root, "HEAD", b""):
        assert not (root / "hooked").exists()


def test_cache_and_remotes_are_those_of_the_project_today(root):
    (root / ".dvc/config").write_text("['remote \"new\"']\n    url = ../../remote\n")
    (root / ".dvc/config.local").write_text("['remote \"new\"']\n    verify = true\n")
    with worktree(root, "HEAD", b"") as project:
        config = Config(str(project / ".dvc"))
        assert Path(os.path.normpath(project / ".dvc" / config["cache"]["dir"])) == root / ".dvc/cache"
        remote = config["remote"]["new"]
        assert (Path(remote["url"]).resolve(), remote["verify"]) == (root.parent / "remote", True)
        assert git("-C", str(project), "status", "--porcelain") == ""


def test_a_cache_that_is_configured_is_used(root, tmp_path):
    (root / ".dvc/config.local").write_text(f"[cache]\n    dir = {tmp_path / 'shared'}\n")
    with worktree(root, "HEAD", b"") as project:
        assert Path(Config(str(project / ".dvc"))["cache"]["dir"]).resolve() == tmp_path / "shared"


def test_a_project_below_the_repositorys_root_stays_below_it(root):
    below = root / "below"
    below.mkdir()
    git("mv", ".dvc", "code.py", "below")
    git("commit", "-q", "-m", "below")
    with worktree(below, "HEAD", b"") as project:
        assert (project / "code.py").exists()
        assert project.name == "below"


def dvc(folder, *arguments):
    done = subprocess.run(dvc_command(*arguments), cwd=folder, env=dvc_environment(), stdout=-1, stderr=-2, text=True)
    return done.returncode, done.stdout.strip()


def test_dvc_understands_one_of_a_submodule(root, tmp_path, monkeypatch):
    """A linked worktree it takes for the submodule's own folder."""
    above = tmp_path / "above"
    git("init", "-q", str(above))
    git("-C", str(above), "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(root), "below")
    monkeypatch.chdir(above / "below")
    Path("code.py").write_text("changed\n")
    recorded = git_state()
    with worktree(above / "below", recorded.commit, recorded.diff) as project:
        assert (project / "code.py").read_text() == "changed\n"
        assert dvc(project, "root") == (0, ".")
        assert dvc(project, "status")[0] == 0
        assert git("-C", str(project), "rev-parse", "HEAD") == recorded.commit


def test_the_repositorys_own_submodules_stay_when_the_user_lets_git_recurse(root, tmp_path, monkeypatch):
    library = tmp_path / "library"
    git("init", "-q", str(library))
    git("-C", str(library), "commit", "-q", "--allow-empty", "-m", "first")
    git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(library), "lib")
    git("commit", "-q", "-m", "with a submodule")
    (tmp_path / "recursing").write_text("[submodule]\n    recurse = true\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "recursing"))
    config = root / ".git/modules/lib/config"
    before = config.read_text()
    with worktree(root, "HEAD", b""):
        assert config.read_text() == before
    assert config.read_text() == before
    assert git("status", "--porcelain") == ""


@pytest.mark.parametrize("options", [["--depth", "1"], ["--filter", "blob:none"], ["--filter", "tree:0"]])
def test_a_clone_that_lacks_objects_is_enough(root, tmp_path, options, monkeypatch):
    """A partial one fetches what an earlier commit needs."""
    earlier = git("rev-parse", "HEAD")
    (root / "code.py").write_text("second\n")
    git("commit", "-q", "-am", "second")
    git("config", "uploadpack.allowFilter", "true")
    git("config", "uploadpack.allowAnySHA1InWant", "true")
    clone = tmp_path / "clone"
    git("clone", "-q", *options, f"file://{root}", str(clone))
    monkeypatch.chdir(clone)
    (clone / "code.py").write_text("changed\n")
    recorded = git_state()
    with worktree(clone, recorded.commit, recorded.diff) as project:
        assert (project / "code.py").read_text() == "changed\n"
        assert git("-C", str(project), "status", "--porcelain") == "M  code.py"
    if "--filter" in options:
        with worktree(clone, earlier, b"") as project:
            assert (project / "code.py").read_text() == "first\n"
            assert git("-C", str(project), "status", "--porcelain") == ""


def files(folder):
    found = [Path(place, name) for place, _, names in os.walk(folder) for name in names]  # as DVC does
    return {path.relative_to(folder).as_posix(): path.read_text() for path in found}


@pytest.mark.parametrize("kept", [[], ["photos/.gitignore"], ["photos/cat/1"]])
def test_a_checkout_sees_the_projects_images(root, tmp_path, kept):
    images = {"cat/1": "one", "cat/2": "two", ".gitignore": "*", "dog/3": "three"}
    outside = tmp_path / "outside"
    outside.write_text("linked")
    for project, names in ((root, images), (tmp_path / "checkout", [name.removeprefix("photos/") for name in kept])):
        for name in names:
            (project / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
            (project / "photos" / name).write_text(images[name])
    (root / "photos/cat/link").symlink_to(outside)
    (root / "photos/all").symlink_to(tmp_path)
    share_images(root, tmp_path / "checkout", "photos")
    share_images(root, tmp_path / "checkout", "photos")
    assert files(tmp_path / "checkout/photos") == images | {"cat/link": "linked"}
    assert (tmp_path / "checkout/photos/cat/1").samefile(root / "photos/cat/1") or kept == ["photos/cat/1"]


def test_a_checkout_sees_the_projects_file_of_weights(root, tmp_path):
    """Where git tracks the folder's .gitignore alone."""
    for project in (root, tmp_path / "checkout"):
        (project / "weights").mkdir(parents=True)
        (project / "weights/.gitignore").write_text("*")
    (root / "weights/mine.safetensors").write_text("weights")
    share_images(root, tmp_path / "checkout", "weights/mine.safetensors")
    assert files(tmp_path / "checkout/weights") == {".gitignore": "*", "mine.safetensors": "weights"}


def test_images_elsewhere_or_that_dvc_brings_are_left_alone(root, tmp_path):
    (root / "sets/photos").mkdir(parents=True)
    (root / "sets.dvc").touch()
    for folder in ("sets/photos", str(tmp_path), "nowhere"):
        share_images(root, tmp_path / "checkout", folder)
    assert not (tmp_path / "checkout").exists()


def test_a_project_lacks_images_that_are_nowhere_and_that_dvc_does_not_track(tmp_path):
    here = {"dataset": "folder", "folder": "photos", "address": None}
    assert lacks_images(tmp_path, here)
    assert lacks_images(tmp_path, here | {"folder": str(tmp_path / "photos")})
    assert not lacks_images(tmp_path, here | {"dataset": "digits"})
    assert not lacks_images(tmp_path, here | {"address": "https://example.org/photos.zip"})
    (tmp_path / "photos.dvc").write_text("outs: [{path: photos}]\n")
    assert not lacks_images(tmp_path, here), "dvc pull fetches them"
    (tmp_path / "photos.dvc").rename(tmp_path / "photos")
    assert not lacks_images(tmp_path, here)
