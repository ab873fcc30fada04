"""Roots, hashes and git's state (the diff itself is tested with the run that holds it)."""

from pathlib import Path

from classifier.lineage import dvc_hash, experiment_tags, git_state, project_root


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
    assert git_state() is None
