"""Which runs pass the promotion checks, and the reasons for the others: real models and runs in a real store."""

import math
import shlex
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest

from classifier.networks.model import Classifier
from classifier.networks.model_dir import write_model
from classifier.networks.registry import build, specify
from classifier.project.files import sha256_of
from classifier.recording.tags import EVALUATED_TAG, SEED_TAG, WEIGHTS_TAG
from classifier.repository.lockfile import read_lock
from classifier.runs import promotion
from classifier.runs.promotion import comparison, consider, limits, median_latency_ms, model_of, releasing, unfit
from classifier.runs.registry import Registry
from classifier.runs.restoring import made_by
from tests.candidates import LIMITS, Candidate, begin_project, git, record_candidates, unregistered
from tests.recorded import get_run, own_store
from tests.samples import file_params, write_digits

PARAMS = file_params().promote.model_copy(update=LIMITS)
TOO_BAD = range(12)  # images wrong: with 45 of 57 right the lower bound is 0.667
WORSE = range(6)  # 51 of 57 right: 0.785; against all right p is 0.03125


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A repository with the runs of four candidates: name -> id."""
    root = tmp_path_factory.mktemp("project")
    with own_store(root):
        begin_project()
        runs = record_candidates({"good": [], "nearly": [0], "worse": WORSE, "bad": TOO_BAD})
        runs["other"] = Candidate(4, images=58).record()
    return root, runs


@pytest.fixture
def runs(project):
    """In that repository, without a registered model."""
    root, runs = project
    with unregistered(root):
        yield runs


def champion(run_id):
    """A registry with this run's model as the champion."""
    registry = Registry("classifier")
    verdict = consider(get_run(run_id), registry, PARAMS)
    assert not verdict.reasons
    registry.promote(verdict.model_id, verdict.tags, None)
    return registry


def test_limits_hold_at_the_limit_and_not_beyond():
    params = PARAMS.model_copy(update={"min_accuracy_low": 0.9, "max_calibration_error": 0.05, "max_latency_ms": 10.0})

    def passed(accuracy, error, latency):
        metrics = {"test/accuracy_low": accuracy, "test/expected_calibration_error": error}
        return [check.passed for check in limits(metrics, latency, params)]

    assert passed(0.9, 0.05, 10.0) == [True, True, True]
    assert passed(0.8999, 0.0501, 10.01) == [False, False, False]
    assert passed(math.nan, math.nan, math.nan) == [False, False, False]
    assert [check.passed for check in limits({}, 1.0, params)] == [False, False, True]
    assert limits({}, 11.0, params)[2].reason == "its latency for one image in ms is 11, allowed is at most 10"


def table(right):
    labels = np.zeros(len(right), np.int64)
    return pd.DataFrame({"label": labels, "predicted": np.where(right, 0, 1)})


def test_worse_than_the_champion_is_a_matter_of_significance():
    good = table([True] * 20)
    for wrong, p, passed in [(5, 0.0625, True), (6, 0.03125, False)]:
        check = comparison(table([False] * wrong + [True] * (20 - wrong)), good, "3", 0.05)
        assert (check.value, check.passed) == (p, passed)
    assert check.reason == (
        "it is worse than the champion, version 3 (6 images only the champion predicts correctly, "
        "0 only this run): McNemar's p-value is 0.03125, allowed is at least 0.05, or better than version 3"
    )
    better = comparison(good, table([False] * 20), "3", 0.05)
    assert better.passed
    assert better.value < 1e-5
    with pytest.raises(ValueError, match="not of the same images"):
        comparison(good, table([True] * 21), "3", 0.05)


def test_the_first_champion_is_judged_by_the_limits_alone(runs):
    verdict = consider(get_run(runs["good"]), Registry("classifier"), PARAMS)
    assert [check.name for check in verdict.checks] == ["accuracy_low", "calibration_error", "latency_ms"]
    assert (verdict.champion, verdict.reasons, verdict.already) == (None, [], False)
    latency = verdict.checks[2].value
    assert 0.01 < latency < 1000


def test_every_reason_is_told(runs):
    registry = champion(runs["good"])
    params = PARAMS.model_copy(update={"max_calibration_error": 0.01, "max_latency_ms": 0.0001})
    verdict = consider(get_run(runs["bad"]), registry, params)
    accuracy, calibration, latency, worse = verdict.reasons
    assert accuracy == "the lower bound of its test accuracy is 0.6671, allowed is at least 0.7"
    assert calibration.startswith("its expected calibration error is 0.2")
    assert calibration.endswith(", allowed is at most 0.01")
    assert latency.startswith("its latency for one image in ms is ")
    assert latency.endswith(", allowed is at most 0.0001")
    assert worse.startswith(
        "it is worse than the champion, version 1 (12 images only the champion predicts correctly, 0 only"
    )


def test_a_little_worse_than_the_champion_may_be_chance(runs):
    registry = champion(runs["good"])
    params = PARAMS.model_copy(update={"max_calibration_error": 0.5})
    assert consider(get_run(runs["nearly"]), registry, params).reasons == []
    (reason,) = consider(get_run(runs["worse"]), registry, params).reasons
    assert "McNemar's p-value is 0.03125" in reason
    assert consider(get_run(runs["worse"]), registry, params.model_copy(update={"significance": 0.03})).reasons == []


def test_the_present_champion_is_not_measured_again(runs):
    verdict = consider(get_run(runs["good"]), champion(runs["good"]), PARAMS)
    assert (verdict.already, verdict.checks, verdict.reasons) == (True, (), [])


def test_a_champion_of_other_test_data_is_a_problem_unless_the_limits_suffice(runs):
    registry, other = champion(runs["good"]), get_run(runs["other"])
    (reason,) = consider(other, registry, PARAMS).reasons
    here, there = (get_run(runs[name]).data.tags["mlflow.classifier.test_sha256"] for name in ("other", "good"))
    assert reason == (
        f"its test split (SHA-256 {here}) is not that of the champion, version 1 ({there}), so they cannot be "
        "compared: --limits-alone checks only the limits"
    )
    assert consider(other, registry, PARAMS, limits_alone=True).reasons == []
    assert "mcnemar_p" in [check.name for check in consider(get_run(runs["nearly"]), registry, PARAMS).checks]


def test_a_champion_without_predictions_is_a_problem_unless_the_limits_suffice(runs):
    registry = Registry("classifier")
    same_images = {"mlflow.classifier.test_sha256": get_run(runs["good"]).data.tags["mlflow.classifier.test_sha256"]}
    registry.client.create_registered_model("classifier")
    registry.client.create_model_version("classifier", "file:///elsewhere", tags=same_images)  # of no run
    registry.client.set_registered_model_alias("classifier", "champion", "1")
    (reason,) = consider(get_run(runs["good"]), registry, PARAMS).reasons
    assert reason.startswith("the predictions of the champion, version 1, are gone with its run, so")
    assert consider(get_run(runs["good"]), registry, PARAMS, limits_alone=True).reasons == []


def test_a_version_carries_lineage_metrics_and_what_the_checks_measured(runs):
    run = get_run(runs["good"])
    verdict = consider(run, Registry("classifier"), PARAMS)
    tags = verdict.tags
    for name in ("git.commit", "git.dirty", "dvc.data", "dvc.model", WEIGHTS_TAG, "mlflow.classifier.test_sha256"):
        assert tags.pop(name) == run.data.tags[name]
    measured = {name.removeprefix("promotion."): tags.pop(name) for name in list(tags) if name.startswith("promotion.")}
    assert measured == {check.name: repr(check.value) for check in verdict.checks}
    assert tags == {name: repr(value) for name, value in run.data.metrics.items() if name.startswith("test/")}
    assert tags["test/accuracy"] == "1.0"


def changed(run, **attributes):
    """The run as MLflow has it once tags or its status are others."""
    client = mlflow.MlflowClient()
    copy = client.create_run(run.info.experiment_id)
    for name, value in {**run.data.tags, **attributes.get("tags", {})}.items():
        if value is not None:
            client.set_tag(copy.info.run_id, name, value)
    client.set_terminated(copy.info.run_id, attributes.get("status", "FINISHED"))
    return client.get_run(copy.info.run_id)


def test_what_is_no_candidate_is_told_in_one_line(runs):
    good = get_run(runs["good"])
    assert unfit(good) is None
    client = mlflow.MlflowClient()

    nested = changed(good, tags={SEED_TAG: "3", "mlflow.parentRunId": good.info.run_id})
    assert unfit(nested) == f"it is one seed of run {good.info.run_id}, which has the model: promote that one"

    parent = client.create_run(good.info.experiment_id)
    changed(good, tags={"mlflow.parentRunId": parent.info.run_id})
    assert unfit(parent) == (
        "it is a sweep, the parent of other runs, and has no model: classifier leaderboard shows which to promote"
    )

    failed = changed(good, status="FAILED", tags={"error": "ValueError: no\nmore", WEIGHTS_TAG: None})
    assert unfit(failed) == "it is FAILED, allowed is FINISHED (ValueError: no)"
    changed(good, tags={SEED_TAG: "0", "mlflow.parentRunId": failed.info.run_id})
    assert unfit(failed) == "it is FAILED, allowed is FINISHED (ValueError: no)"  # of several seeds, and no sweep
    assert unfit(changed(good, status="KILLED")) == "it is KILLED, allowed is FINISHED"
    client.update_run(failed.info.run_id, status="RUNNING")
    assert "classifier sync records" in unfit(get_run(failed.info.run_id))

    assert "was not evaluated" in unfit(changed(good, tags={EVALUATED_TAG: None}))
    assert unfit(changed(good, tags={"dvc.model": None, "git.commit": None})) == (
        "it does not record the commit that made it (tag git.commit), DVC's hash of the model (tag dvc.model)"
    )
    nothing = {"git.commit": None, "git.problem": "git is not installed"}
    assert unfit(changed(good, tags=nothing)) == "it does not record its commit: git is not installed"
    without = changed(good)
    assert unfit(without) is None
    (reason,) = consider(without, Registry("classifier"), PARAMS).reasons
    assert reason == "its model is not in MLflow, or was deleted there"


def test_a_model_that_was_broken_off_does_not_count(runs):
    run = get_run(runs["nearly"])
    client = mlflow.MlflowClient()
    whole = model_of(run).model_id
    client.create_logged_model(run.info.experiment_id, source_run_id=run.info.run_id)
    assert model_of(run).model_id == whole


def test_another_model_than_the_evaluated_one_is_refused(workspace):
    candidate = Candidate(0)
    with pytest.raises(ValueError, match=f"the run's model has weights {candidate.meta.weights_sha256}, but weights 0"):
        median_latency_ms(candidate.model, "0" * 64)


def test_the_time_is_that_of_an_image_of_the_models_size(tmp_path, monkeypatch):
    digits = write_digits(tmp_path / "data")
    preprocessing = digits.preprocessing.model_copy(update={"image_size": 64})
    spec = specify(digits.model_copy(update={"preprocessing": preprocessing}), "squeezenet1_1")
    meta = write_model(tmp_path / "model", {0: build(spec, 0)}, 0, spec)
    shapes, forward = set(), Classifier.forward
    monkeypatch.setattr(Classifier, "forward", lambda self, raw: shapes.add(raw.shape) or forward(self, raw))
    monkeypatch.setattr(promotion, "TIMED", 2)
    assert median_latency_ms(tmp_path / "model", meta.weights_sha256) > 0
    assert shapes == {(1, 1, 64, 64)}


@pytest.mark.parametrize(("folder", "artifact"), [(".", "classifier"), ("teams/vision", "teams/vision=classifier")])
def test_a_release_tags_the_commit_that_holds_the_model(workspace, monkeypatch, folder, artifact):
    """Under the artifact's name in dvc.yaml, whatever the registered model is called."""
    enter(workspace / folder, monkeypatch)
    begin_project(workspace)
    candidate = Candidate(0)
    run = get_run(candidate.record())
    with pytest.raises(ValueError, match=r"^commit the dvc.lock that holds this model, then run this command again$"):
        releasing(run, "3", "digits")
    git("add", "dvc.lock")
    git("commit", "-qm", "trained")
    commit = git("rev-parse", "--short", "HEAD")
    Candidate(1)
    git("commit", "-qam", "trained again")
    tag, push, push_tag = releasing(run, "3", "digits")
    assert tag == f'git tag -a {artifact}@v3.0.0 -m "Version 3 of digits, MLflow run {run.info.run_id}" {commit}'
    assert (push, push_tag) == ("dvc push --all-tags", f"git push origin {artifact}@v3.0.0")
    assert not run.data.tags["git.commit"].startswith(commit)


def test_a_signed_commit_is_found_when_the_user_lets_git_check_signatures(workspace, tmp_path_factory, monkeypatch):
    enter(workspace, monkeypatch)
    begin_project(workspace)
    run = get_run(Candidate(0).record())
    git("add", "dvc.lock")
    git("commit", "-qm", "trained")
    headers, message = git("cat-file", "commit", "HEAD").split("\n\n", 1)
    signature = "gpgsig -----BEGIN PGP SIGNATURE-----\n \n iQEz\n -----END PGP SIGNATURE-----"
    signed = workspace / "signed"
    signed.write_text(f"{headers}\n{signature}\n\n{message}\n")
    git("reset", "-q", "--soft", git("hash-object", "-t", "commit", "-w", str(signed)))
    checking = tmp_path_factory.mktemp("home") / "checking"
    checking.write_text("[log]\n    showSignature = true\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(checking))
    commit = git("rev-parse", "--short", "HEAD")
    assert releasing(run, "3", "digits")[0].endswith(f" {commit}")
    assert made_by(read_lock()).commit == git("rev-parse", "HEAD")


def test_a_release_of_a_project_in_a_subfolder_is_found_by_dvc(workspace, monkeypatch):
    def dvc(*arguments):
        subprocess.run([sys.executable, "-m", "dvc", *arguments], check=True, capture_output=True, text=True)

    folder = workspace / "teams/vision"
    enter(folder, monkeypatch)
    begin_project(workspace)
    with Path("dvc.yaml").open("a") as pipeline:
        pipeline.write("stages:\n  train:\n    cmd: 'true'\n    outs: [models/classifier]\n")
    dvc("init", "--quiet", "--subdir")
    candidate = Candidate(0)
    Path("dvc.lock").unlink()
    dvc("commit", "--quiet", "--force", "train")
    run = get_run(candidate.record())
    git("add", "-A")
    git("commit", "-qm", "trained")
    tag, _, _ = releasing(run, "1", "classifier")
    git(*shlex.split(tag)[1:])
    monkeypatch.chdir(workspace)
    monkeypatch.delenv("DVC_ROOT")
    dvc("artifacts", "get", ".", "teams/vision:classifier", "--rev", "v1.0.0", "--out", "artifact")
    dvc("get", ".", "teams/vision/models/classifier", "--rev", "teams/vision=classifier@v1.0.0", "--out", "got")
    for out in ("artifact", "got"):
        assert sha256_of(Path(out) / "weights.safetensors") == candidate.meta.weights_sha256


def enter(folder, monkeypatch):
    folder.mkdir(parents=True, exist_ok=True)
    monkeypatch.setenv("DVC_ROOT", str(folder))
    monkeypatch.chdir(folder)


def test_what_keeps_dvc_from_finding_a_release_is_said(workspace, monkeypatch):
    enter(workspace / "my models", monkeypatch)
    begin_project(workspace)
    run = get_run(Candidate(0).record())
    git("add", "dvc.lock")
    git("commit", "-qm", "trained")
    with pytest.raises(ValueError, match=r"^rename the folder or the artifact in my models=classifier: "):
        releasing(run, "1", "classifier")
    Path("dvc.yaml").write_text("artifacts:\n  other:\n    path: other\n")
    with pytest.raises(ValueError, match=r"^name the model in dvc.yaml: an entry of artifacts with the path models/cl"):
        releasing(run, "1", "classifier")


def test_without_git_there_is_nothing_to_release(workspace, monkeypatch):
    run = get_run(Candidate(0).record())
    monkeypatch.setenv("PATH", str(workspace))
    with pytest.raises(ValueError, match=r"^git is not installed$"):
        releasing(run, "3", "classifier")
