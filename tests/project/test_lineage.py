"""Roots, hashes and git's state (the diff itself is tested with the run that holds it)."""

from classifier.project.lineage import project_root
from classifier.recording.tags import experiment_tags


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


def test_experiment_tags_exist_in_experiments_only(monkeypatch):
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "")
    assert experiment_tags() == {}
    monkeypatch.setenv("DVC_EXP_NAME", "wavy-duck")
    assert experiment_tags() == {"dvc.exp.name": "wavy-duck"}
