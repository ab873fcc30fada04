"""The recorder: a process that runs in parallel to a stage and uploads its journal to MLflow as it grows.

    python -m classifier.tracking.recorder .pipeline/journal/<name>

Started by a stage (`classifier.recording.run`), it runs until the stage ends and closes its standard input, then
uploads the rest. Data that it cannot upload is uploaded by the next stage or `classifier sync`.
"""

from __future__ import annotations

import json
import os
import select
import sys
from contextlib import suppress
from pathlib import Path

from classifier.project.cli import paths, run
from classifier.project.lineage import project_root
from classifier.recording.journal import Journal
from classifier.tracking.delivery import Delivery, advance, finish
from classifier.tracking.errors import explained
from classifier.tracking.internals import SystemMetrics

NICENESS = 10
SYSTEM_METRICS_S = 2  # seconds between samples of CPU and memory use
DELIVERY_S = 5.0  # seconds between uploads, so that curves can be watched live
FIRST_DELIVERY_S = 0.1  # the same until the run exists


def main(arguments: list[str]) -> None:
    """Upload while the stage runs. Exits with status 1 if some data is not yet recorded in MLflow."""
    (folder,) = paths(arguments, "journal")
    _give_way()
    journal = Journal(folder)  # the stage owns it
    os.chdir(project_root())  # an experiment's folder may be removed
    trains = journal.folder.name.endswith("-train")
    delivery: Delivery | None = None
    monitor: SystemMetrics | None = None
    complaint, unmonitored, stage_ended = "", "", False
    while not stage_ended:
        try:
            delivery = advance(journal, delivery)
            complaint = ""
        except Exception as error:  # the stage continues, and the journal keeps the data
            delivery = None
            complaint = complaint or _complain(error, journal)
        if delivery and delivery.run_id and not monitor and trains:
            try:
                monitor = SystemMetrics(delivery.run_id, SYSTEM_METRICS_S, resumed=delivery.resumed)
            except Exception as error:  # retried after the next upload
                unmonitored = explained(error)
        begun = bool(complaint or (delivery and delivery.run_id))
        if begun:
            with suppress(OSError):  # a full disk: training then waits for its timeout
                journal.begun.touch()
        stage_ended = bool(select.select([sys.stdin], [], [], DELIVERY_S if begun else FIRST_DELIVERY_S)[0])
    if monitor:
        _stop(monitor)
    elif unmonitored:
        print(f"MLflow: {unmonitored}; the system metrics are lost", file=sys.stderr, flush=True)
    if complaint:
        sys.exit(1)  # do not wait for an unreachable store; the next stage tries again
    try:
        if (delivered := finish(journal, delivery)) and delivered.run_id:
            said = {"name": delivered.name, "id": delivered.run_id, "experiment": delivered.experiment}
            with suppress(OSError):  # the stage was killed; print would raise once more at exit
                os.write(sys.stdout.fileno(), json.dumps(said).encode())
    except Exception as error:
        _complain(error, journal)
        sys.exit(1)


def _give_way() -> None:
    """Lower the priority of this process in favour of training and, on Linux, of its session's scheduling group."""
    os.nice(NICENESS)
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(NICENESS), encoding="ascii")


def _complain(error: Exception, journal: Journal) -> str:
    line = f"MLflow: {explained(error)}; not yet recorded in MLflow ({journal.folder}): classifier sync"
    print(line, file=sys.stderr, flush=True)
    return line


def _stop(monitor: SystemMetrics) -> None:
    try:
        monitor.stop()
    except Exception as error:
        print(f"MLflow: {explained(error)}; the last system metrics are lost", file=sys.stderr, flush=True)


if __name__ == "__main__":
    run(main, "recorder")
