"""A team's tracking server, as README sets it up: MLflow's on PostgreSQL, artifacts on S3, a password for everyone."""

import os
import signal
import subprocess
import sys
from contextlib import ExitStack

import mlflow
import numpy as np
import pytest
import requests
from safetensors.numpy import load_file

from classifier.params import load_params
from classifier.project.files import sha256_of
from classifier.runs.registry import Registry
from classifier.tracking.connection import open_store
from classifier.tracking.delivery import deliver_waiting
from classifier.training.history import HistoryRow
from tests.projects import Project
from tests.recorded import Workspace, files, forget_store, get_run, history
from tests.samples import ROOT
from tests.servers import postgres_programs, postgres_server, s3_server, tracking_server

pytestmark = pytest.mark.slow

WORKERS, POINTS = 4, 1000
WORKER = """
import sys
from tests.recorded import recorded
from tests.samples import file_params
number, points = map(int, sys.argv[1:])
print("ready", flush=True)
sys.stdin.read()  # until all are
with recorded("train", file_params()) as record:
    record.begin(f"worker {number}", {})
    for step in range(points):
        record.journal.append("metrics", seed=None, step=step, values={"train/running_loss": number + step / points})
print(record.id)
"""
DYING = """
import os, signal, sys
from classifier.runs.registry import Registry
from classifier.tracking.connection import open_store
open_store()
registry, (model, *judged) = Registry("shared"), sys.argv[1:]
registry.client.set_registered_model_alias = lambda *move: os.kill(os.getpid(), signal.SIGKILL)
registry.promote(model, {"mlflow.classifier.weights_sha256": model, "mlflow.classifier.test_sha256": "images"}, *judged)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with ExitStack() as stack:
        servers = stack.enter_context(postgres_server()), stack.enter_context(s3_server())
        yield stack.enter_context(tracking_server(tmp_path_factory.mktemp("server"), *servers))


@pytest.fixture(scope="module")
def project(server, tmp_path_factory):
    """Its pipeline ran once, with no other settings than a user's variables."""
    project = Project(tmp_path_factory.mktemp("project"))
    project.edit_params("epochs: 20", "epochs: 1")
    assert project.repro(env=server.variables("ann")) == ["download", "normalize", "pretrained", "train", "evaluate"]
    return project


@pytest.fixture
def as_ann(server, monkeypatch):
    for name, value in server.variables("ann").items():
        monkeypatch.setenv(name, value)
    yield
    forget_store()


def runs(server):
    return {run_id for (run_id,) in server.postgres.rows("mlflow", "SELECT run_uuid FROM runs")}


def tags(server, run_id):
    return dict(server.postgres.rows("mlflow", f"SELECT key, value FROM tags WHERE run_uuid = '{run_id}'"))


def journals(project):
    return list((project.folder / ".pipeline/journal").glob("*-*"))


def check_no_secret(server, *texts):
    """In the store, on S3, in the server's log, and in `texts`."""
    objects = server.s3.objects(server.bucket)
    contents = [*objects.values(), server.log.read_bytes(), server.postgres.text("mlflow").encode(), *texts]
    for secret in server.secrets():
        assert not [content for content in contents if secret.encode() in content]


def test_four_workers_at_once_write_a_thousand_metrics_each_and_nothing_is_lost(server, tmp_path):
    """Each in a project of its own, as on four machines; the first of them makes the experiment."""
    with ExitStack() as stack:
        workers = []
        for number in range(WORKERS):
            folder = tmp_path / str(number)
            folder.mkdir()
            own = {"DVC_ROOT": str(folder), "PYTHONPATH": str(ROOT), "MLFLOW_HTTP_REQUEST_TIMEOUT": "120"}
            own |= server.variables(["ann", "bob"][number % 2])
            command = [sys.executable, "-c", WORKER, str(number), str(POINTS)]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            worker = subprocess.Popen(command, cwd=folder, env=os.environ | own, **pipes)
            workers.append(stack.enter_context(worker))
        assert [worker.stdout.readline() for worker in workers] == ["ready\n"] * WORKERS
        for worker in workers:
            worker.stdin.close()
        ids = [worker.stdout.read().split()[-1] for worker in workers]  # behind MLflow's lines on where to look
    assert [worker.returncode for worker in workers] == [0] * WORKERS
    for number, run_id in enumerate(ids):
        query = f"SELECT key, step, value FROM metrics WHERE run_uuid = '{run_id}' ORDER BY step"
        wanted = [("train/running_loss", step, number + step / POINTS) for step in range(POINTS)]
        assert server.postgres.rows("mlflow", query) == wanted
        assert server.postgres.rows("mlflow", f"SELECT status FROM runs WHERE run_uuid = '{run_id}'") == [("FINISHED",)]
        assert tags(server, run_id)["mlflow.classifier.key"] == f"worker {number}"
        assert not list((tmp_path / str(number)).glob(".pipeline/journal/*-*"))


def test_the_pipeline_records_on_the_server_what_it_records_in_its_own_store(project, server, as_ann):
    assert not (project.folder / "mlflow.db").exists()
    assert not (project.folder / "mlartifacts").exists()
    assert not journals(project)
    weights = sha256_of(project.folder / "models/classifier/weights.safetensors")
    (run_id,) = (
        run_id for run_id in runs(server) if tags(server, run_id).get("mlflow.classifier.weights_sha256") == weights
    )
    run = get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.classifier.evaluated"] == "true"
    params = load_params(project.folder / "params.yaml")
    assert run.data.params == {name: str(value) for name, value in params.flat().items()}
    assert {name: run.data.metrics[f"test/{name}"] for name in project.metrics()} == project.metrics()

    reports = {
        str(path.relative_to(project.folder / "reports")): path.read_bytes()
        for path in (project.folder / "reports").rglob("*")
        if path.is_file() and path.name != ".gitignore"
    }
    assert reports.keys() | {"logs/train.txt", "logs/evaluate.txt", "code/params.yaml"} <= files(run_id)
    objects = server.s3.objects(server.bucket)
    for path, content in reports.items():
        assert objects[f"{run.info.experiment_id}/{run_id}/artifacts/{path}"] == content

    (output,) = run.outputs.model_outputs
    split = load_file(project.folder / "data/normalized/test.safetensors")
    predicted = mlflow.pyfunc.load_model(f"models:/{output.model_id}").predict(split["images"])["predicted"]
    assert np.mean(predicted.astype(int) == split["labels"]) == project.metrics()["accuracy"]


def test_with_a_wrong_password_the_run_waits_for_the_right_one(project, server):
    before = runs(server)
    wrong = server.variables("ann", "not anns password")
    said = project.run("dvc", "repro", "--force", "--single-item", "evaluate", env=wrong)
    (line,) = (line for line in said.splitlines() if line.startswith("MLflow: "))
    assert "(401): set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in line
    assert line.endswith(": classifier sync")
    assert "Traceback" not in said
    (journal,) = journals(project)
    refused = project.run("python", "-m", "classifier", "sync", check=False, env=wrong)
    assert project.returncode == 1
    assert len(refused.splitlines()) == 1
    assert "401" in refused
    assert journals(project) == [journal]
    assert runs(server) == before
    kept = [path.read_bytes() for path in journal.rglob("*") if path.is_file()]
    check_no_secret(server, *kept, said.encode(), refused.encode())
    assert not [content for content in kept if b"not anns password" in content]

    delivered = project.run("python", "-m", "classifier", "sync", env=server.variables("ann"))
    (new,) = runs(server) - before
    assert delivered == f"recorded: evaluate, run {new}\neverything is recorded\n"
    assert tags(server, new)["mlflow.classifier.evaluated"] == "true"
    check_no_secret(server)


def test_a_run_takes_few_requests_however_long_its_training_was(workspace, server, as_ann, monkeypatch):
    """Of both journals and everything in them, up to the 1,000 points of a batch; files take one each."""
    sent, counts = [], []
    send = requests.Session.send

    def counting(session, request, **options):
        sent.append((request.method, request.path_url.partition("?")[0]))
        return send(session, request, **options)

    monkeypatch.setattr(requests.Session, "send", counting)
    for epochs in (1, 1, 20):  # the first makes the experiment
        outputs = Workspace()
        outputs.has_history([HistoryRow(step, step, step, 0.1, 2.0, 2.0, 1.9, 0.5) for step in range(1, epochs + 1)])
        of_epochs = []
        for stage in (outputs.train, outputs.evaluate):
            sent.clear()
            run_id = stage()
            of_files = [path for _, path in sent if "/mlflow-artifacts/" in path]
            of_epochs.append((len(sent) - len(of_files), len(of_files)))
        counts.append(of_epochs)
        assert len(history(run_id, "train/loss")) == epochs
    assert counts[1] == counts[2]
    (train, _), (evaluate, _) = counts[2]
    assert train <= 28
    assert evaluate <= 20


def test_a_killed_promotion_is_repeated_by_another_user(server, tmp_path, monkeypatch):
    """Who may edit what ann made may not delete it: a promotion and a rollback need no more than that."""

    def become(user):
        for name, value in (server.variables(user) | {"DVC_ROOT": str(tmp_path)}).items():
            monkeypatch.setenv(name, value)

    def tags(model):
        return {"mlflow.classifier.weights_sha256": model, "mlflow.classifier.test_sha256": "images"}

    become("ann")
    client, experiment = mlflow.MlflowClient(), open_store("promotions")
    registry, models = Registry("shared"), []
    for _ in range(4):
        run = client.create_run(experiment)
        logged = client.create_logged_model(experiment, source_run_id=run.info.run_id)
        models.append(client.finalize_logged_model(logged.model_id, "READY").model_id)
    registry.promote(models[0], tags(models[0]), None)
    become("bob")
    assert registry.promote(models[1], tags(models[1]), "1") == "2"
    for user, other, champion in (("ann", "bob", "2"), ("bob", "ann", "3")):
        become(user)
        command = [sys.executable, "-c", DYING, models[int(champion)], champion]
        killed = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)})
        assert killed.returncode == -signal.SIGKILL
        assert registry.champion() == champion
        become(other)
        repeated = models[int(champion)]
        assert registry.promote(repeated, tags(repeated), champion) == str(int(champion) + 1)
        assert registry.replaced() == champion
    registry.roll_back()
    assert (registry.champion(), registry.replaced()) == ("3", "4")
    forget_store()


def test_a_database_without_a_server_gets_no_addresses_of_this_machine(server, workspace, monkeypatch):
    """It does not know where artifacts go: a person says it once, with the command that is named."""
    with server.postgres.connect("postgres") as connection, connection.cursor() as cursor:
        cursor.execute("CREATE DATABASE direct")
    place = f"s3://{server.bucket}/direct"
    variables = server.s3.variables | {
        "MLFLOW_TRACKING_URI": server.postgres.uri("direct"),
        "PGPASSWORD": server.postgres.password,
        "MLFLOW_S3_ENDPOINT_URL": server.s3.address,
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(OSError, match="a database does not know where artifacts go") as error:
        Workspace().train()
    command = str(error.value).partition("as in ")[2].replace("s3://bucket/path", place).split()
    assert command[:3] == ["mlflow", "experiments", "create"]
    subprocess.run([sys.executable, "-m", *command], check=True, capture_output=True)
    (line,), left = deliver_waiting()
    assert left == []
    assert get_run(line.split()[-1]).info.artifact_uri.startswith(f"{place}/")
    kept = [key for key in server.s3.objects(server.bucket) if key.startswith("direct/")]
    assert [key for key in kept if key.endswith("weights.safetensors")]
    query = (
        "SELECT artifact_location FROM experiments WHERE name <> 'Default' "  # which MLflow creates, and no run is in
        "UNION SELECT artifact_uri FROM runs UNION SELECT artifact_location FROM logged_models"
    )
    addresses = [address for (address,) in server.postgres.rows("direct", query)]
    assert len(addresses) == 3
    assert all(address.startswith(place) for address in addresses)
    forget_store()


def test_nobody_gets_in_without_a_password(server):
    what = "experiments/search?max_results=1"
    assert server.ask(what).status_code == 401
    assert server.ask(what, "ann", server.passwords["bob"]).status_code == 401
    assert server.ask(what, "ann", server.passwords["ann"]).status_code == 200


def test_without_postgresql_the_tests_fail_and_say_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r": apt-get install postgresql$"):
        postgres_programs(f"{tmp_path}/*/bin")
    for version in (9, 15):
        (tmp_path / f"{version}/bin").mkdir(parents=True)
        (tmp_path / f"{version}/bin/initdb").touch()
    assert postgres_programs(f"{tmp_path}/*/bin") == tmp_path / "15/bin"
