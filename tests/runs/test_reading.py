"""Recorded runs, read back from a real store."""

import shutil
import sqlite3
from contextlib import closing

import mlflow
import pytest

from classifier.runs.reading import all_runs, find_run, frame, predictions, run_with_files
from classifier.tracking.connection import open_store
from tests.results import TEST, record, record_seeds, wrong_on
from tests.samples import ROOT

pytestmark = pytest.mark.usefixtures("workspace")


def test_a_run_is_found_by_its_id_and_by_its_beginning():
    run, other = record(0), record(1)
    assert find_run(run).info.run_id == run
    assert find_run(f" {other[:8].upper()} ").info.run_id == other


def test_a_beginning_that_none_has_names_the_newest_runs():
    run = record(0)
    with pytest.raises(ValueError, match=f"no run is called '000000'; the newest are {run[:12]} "):
        find_run("000000")


def test_an_empty_store_is_said():
    said = "the experiment 'classifier' has no run, dvc repro makes one"
    with pytest.raises(ValueError, match=f"^no run is called '000000'; {said}; allowed is a name"):
        find_run("000000")
    with pytest.raises(ValueError, match=f"^{said}$"):
        all_runs()


def test_a_run_of_an_experiment_that_was_renamed_is_found_and_its_experiment_named(capsys):
    run = record(0)
    mlflow.MlflowClient().rename_experiment(open_store(), "all digits")
    for wanted in (run, run[:8]):
        assert find_run(wanted).info.run_id == run
        assert capsys.readouterr() == ("", f"run {run} is in the experiment 'all digits'\n")
    hint = "the experiment 'classifier' has no run, dvc repro makes one; 'all digits' has: set MLFLOW_EXPERIMENT_NAME="
    with pytest.raises(ValueError, match=f"^{hint}'all digits'$"):
        all_runs()
    new = record(1)  # in the new experiment of the old name
    assert find_run(new).info.run_id == new
    assert capsys.readouterr() == ("", "")


def test_a_run_that_was_deleted_alone_or_with_its_experiment_can_be_restored():
    run, client = record(0), mlflow.MlflowClient()
    client.delete_run(run)
    with pytest.raises(ValueError, match=f"^run {run} was deleted: mlflow runs restore --run-id {run}$"):
        find_run(run[:8])
    client.restore_run(run)
    experiment = open_store()
    client.rename_experiment(experiment, "old")
    client.delete_experiment(experiment)
    command = f"mlflow experiments restore -x {experiment}"
    with pytest.raises(ValueError, match=f"^run {run} was deleted with the experiment 'old': {command}$"):
        find_run(run)


@pytest.mark.parametrize("reference", ["", "abc", "a%%%%%%", "../../etc", "o'hare", "@nobody"])
def test_what_is_neither_a_name_nor_an_id_is_refused(reference, monkeypatch):
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    record(0)
    with pytest.raises(
        ValueError, match=r"allowed is a name, an id or its first 4 characters|no version is classifier@nob"
    ):
        find_run(reference)


def test_a_run_is_found_by_its_name_or_the_last_word_of_it():
    client = mlflow.MlflowClient()
    first, second, third = record(0), record(1), record(2)
    client.update_run(first, name="digits lenet5 98.9% bouncy-rook-769")
    client.update_run(second, name="769")
    assert find_run("digits lenet5 98.9% bouncy-rook-769").info.run_id == first
    assert find_run("bouncy-rook-769").info.run_id == first
    assert find_run("769").info.run_id == second  # not what merely ends so
    client.update_run(third, name="mnist lenet5 bouncy-rook-769")
    with pytest.raises(
        ValueError, match=rf"'bouncy-rook-769' matches several runs: ({first[:12]}|{third[:12]}) .*more char"
    ):
        find_run("bouncy-rook-769")


def test_latest_is_the_newest_run_with_a_model_of_its_own():
    parent, *_ = record_seeds()
    record(7, tags={"mlflow.classifier.sweep_key": "key"})
    assert find_run("latest").info.run_id == parent


def test_champion_is_the_run_of_the_version_with_that_alias():
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    run, client = record(0), mlflow.MlflowClient()
    record(1)
    client.create_registered_model("classifier")
    client.create_model_version("classifier", "models", run_id=run)
    client.set_registered_model_alias("classifier", "champion", "1")
    assert find_run("@champion").info.run_id == run


def test_a_beginning_that_several_have_names_them():
    runs = [record(0), record(1)]
    with closing(sqlite3.connect("mlflow.db")) as store, store:
        for number, run in enumerate(runs):
            store.execute("UPDATE runs SET run_uuid = ? WHERE run_uuid = ?", (f"abcdef{number:026d}", run))
    with pytest.raises(ValueError, match=r"'abcdef' matches several runs: (abcdef000000 \(.*\)(, )?){2}; name one"):
        find_run("abcdef")


def test_predictions_are_the_table_that_evaluate_wrote():
    found = predictions(find_run(record(0, [3])))
    assert [*found] == ["index", "label", "predicted", "p_0", "p_1", "p_2", "p_3"]
    assert found["predicted"].tolist() == wrong_on([3]).tolist()


def test_predictions_of_a_seed_are_its_parents_if_it_was_chosen():
    parent, other, chosen = record_seeds()
    assert run_with_files(find_run(chosen)).info.run_id == parent
    assert len(predictions(find_run(chosen))) == 40
    message = f"run {other} has seed 4; its parent, run {parent}, keeps the predictions of seed 5 only"
    with pytest.raises(FileNotFoundError, match=message):
        predictions(find_run(other))


def test_a_sweep_does_not_stand_for_its_runs():
    run = find_run(record(0, tags={"mlflow.parentRunId": record(1)}))
    assert run_with_files(run) is run


def test_a_seed_has_its_parents_data_and_tags():
    parent, other, chosen = record_seeds()
    rows = all_runs()
    assert set(rows["test_data"]) == {TEST}
    assert rows["replica_of"].dropna().to_dict() == {other: parent, chosen: parent}
    assert rows["seed"].to_dict() == {parent: "5", other: "4", chosen: "5"}
    assert set(rows["artifact_uri"]) == {rows.loc[parent, "artifact_uri"]}
    assert rows["predictions_uri"].notna().to_dict() == {parent: True, other: False, chosen: True}
    assert rows.loc[chosen, "tags.git.commit"] == "c" * 40
    assert rows.loc[chosen, "trained_s"] == 2.5


def test_runs_of_before_the_test_split_was_recorded_have_that_of_the_same_data():
    old = record(0, tags={"mlflow.classifier.test_sha256": ""})
    older = record(0, tags={"mlflow.classifier.test_sha256": "", "dvc.data": "e" * 32 + ".dir"})
    record(0)
    assert all_runs()["test_data"][[old, older]].tolist() == [TEST, "e" * 32 + ".dir"]


def test_a_run_without_seconds_does_not_know_how_long_training_took():
    run = mlflow.get_run(record(0))
    assert frame([run]).loc[run.info.run_id, "trained_s"] == 2.5
    del run.data.metrics["train/seconds"]
    assert frame([run]).loc[run.info.run_id, "trained_s"] is None
