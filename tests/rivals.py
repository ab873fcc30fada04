"""Other processes that promote: they race, or are killed. Without imports that they need not wait for."""

import contextlib
import io
import json
import multiprocessing
import os
import signal

import mlflow

from classifier.commands.application import call
from classifier.runs.registry import Registry
from classifier.tracking.connection import open_store

STORES = [f"mlflow.store.{kind}.sqlalchemy_store" for kind in ("tracking", "model_registry")]
PROCESSES = multiprocessing.get_context("forkserver")  # each begins without this one's connections
PROCESSES.set_forkserver_preload(["pandas", *STORES])
WRITES = [
    "create_registered_model",
    "_create_model_version",
    "set_logged_model_tags",
    "set_model_version_tag",
    "set_registered_model_alias",
]


def enter(root):
    """The project `root` and its own store, whatever the process that the server was forked from had in mind."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    os.environ["DVC_ROOT"] = root
    os.chdir(root)


def die_before(writes, root, name, work, *arguments):
    """In a process of its own, which is killed when it begins its write to the registry with this number."""
    enter(root)
    open_store()
    stop_before(writes, lambda: os.kill(os.getpid(), signal.SIGKILL), setattr)
    getattr(Registry(name), work)(*arguments)


def stop_before(writes, stop, patch):
    """Call `stop` in place of the write to the registry with this number; `patch` is setattr or monkeypatch's."""
    left = iter(range(writes, -1, -1))

    def counted(method):
        def call(*args, **kwargs):
            if next(left) == 0:
                stop()
            return method(*args, **kwargs)

        return call

    for write in WRITES:
        patch(mlflow.MlflowClient, write, counted(getattr(mlflow.MlflowClient, write)))


def race(root, name, rounds, barrier, answers, own):
    """Promote `own` once a round, at the same moment as the other process."""
    enter(root)
    open_store()
    for number in range(rounds):
        registry = Registry(f"{name}-{number}")
        champion = registry.champion()
        barrier.wait(60)
        try:
            answers.put((number, registry.promote(*own, champion), None))
        except ValueError as error:
            answers.put((number, None, str(error)))
        barrier.wait(60)


def race_commands(root, rounds, start, gate, answers, run_id):
    """`classifier promote RUN_ID` once a round; both rivals pass the gate before either goes on."""
    enter(root)
    alone = Registry.promote

    def together(*arguments):
        gate.wait(60)
        return alone(*arguments)

    Registry.promote = together
    for _ in range(rounds):
        start.wait(60)
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                call(["promote", run_id, "--json"])
            answers.put((run_id, json.loads(printed.getvalue())["outcome"]))
        except ValueError as error:
            answers.put((run_id, str(error)))
