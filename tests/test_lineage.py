"""Roots, hashes and git's state (the diff itself is tested with the run that holds it)."""

import subprocess
from pathlib import Path

from classifier.project.lineage import LARGEST_NEW_FILE, dvc_hash, experiment_tags, git_state, project_root


def test_root_is_dvcs_main_repository(monkeypatch, tmp_path):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "main"))
    monkeypatch.chdir(tmp_path)
    assert project_root() == tmp_path / "main"


def test_root_without_dvc_is_the_nearest_folder_with_dot_dvc(monkeypatch, tmp_path):
    monkeypatch.delenv("DVC_ROOT", raising=False)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    assert project_root() == tmp_path


def test_hash_of_an_output_comes_from_the_working_folders_lock(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert dvc_hash(Path("data/raw")) is None
    Path("dvc.lock").write_text(
        "schema: '2.0'\nstages:\n  train:\n    deps:\n    - path: data/raw\n      md5: wrong\n  download:\n"
        "    outs:\n    - path: data/raw\n      hash: md5\n      md5: 12e4.dir\n"
    )
    assert dvc_hash(Path("data/raw")) == "12e4.dir"
    assert dvc_hash(Path("data/other")) is None


def test_experiment_tags_exist_in_experiments_only(monkeypatch):
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "")
    assert experiment_tags() == {}
    monkeypatch.setenv("DVC_EXP_NAME", "wavy-duck")
    assert experiment_tags() == {"dvc.exp.name": "wavy-duck"}


def test_outside_git_there_is_no_state(monkeypatch, tmp_path):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    state = git_state()
    assert (state.commit, state.diff) == (None, b"")
    assert "not a git repository" in state.problem


def test_without_git_there_is_no_state(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert git_state().problem == "git is not installed"


def test_the_users_git_settings_do_not_change_the_patch_and_large_new_files_stay_out(monkeypatch, tmp_path):
    def git(*arguments):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=b", *arguments], check=True, cwd=tmp_path)

    git("init", "-q")
    (tmp_path / "a").write_text("one\n")
    git("add", "a")
    git("commit", "-qm", "first")
    git("config", "diff.noprefix", "true")
    git("config", "color.diff", "always")
    (tmp_path / "a").write_text("two\n")
    (tmp_path / "large.bin").write_bytes(bytes(LARGEST_NEW_FILE + 1))
    (tmp_path / "dvc.lock").write_text("schema: '2.0'\n")
    monkeypatch.chdir(tmp_path)
    before = sorted(path for path in (tmp_path / ".git/objects").rglob("*"))
    state = git_state()
    assert state.diff.startswith(b"diff --git a/a b/a\n")
    assert b"dvc.lock" not in state.diff
    assert b"large.bin" not in state.diff
    assert state.problem == "too large for the diff: large.bin"
    assert sorted(path for path in (tmp_path / ".git/objects").rglob("*")) == before


def test_a_damaged_lock_is_no_hash(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for text in ("", "stages:\n  train: {", "schema: '2.0'\n"):
        Path("dvc.lock").write_text(text)
        assert dvc_hash(Path("data/raw")) is None
