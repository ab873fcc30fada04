"""The recorder: the process beside a stage that delivers its journal to MLflow as it grows.

    python -m classifier.tracking.recorder .pipeline/journal/<name>

A stage starts it (`classifier.recording.run`) and hands on its lock on the journal. It works until its standard input
ends with the stage, then delivers the rest; what it cannot deliver waits for the next stage or `classifier sync`.
"""

from __future__ import annotations

import os
import platform
import select
import sys
import time
from contextlib import suppress
from importlib.metadata import distributions
from pathlib import Path

from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from classifier.project.cli import paths, run
from classifier.project.files import write_json
from classifier.project.lineage import project_root
from classifier.recording.journal import Journal
from classifier.tracking.delivery import Delivery, EarlierJournalError, close, deliver_waiting, first_line, let_go_first

NICENESS = 10
SYSTEM_METRICS_S = 2  # seconds between two samples of processor and memory use
DELIVERY_S = 5.0  # seconds between two deliveries, so that curves can be watched
FIRST_DELIVERY_S = 0.1  # the same until the run is there
EARLIER_S = 20.0  # seconds that a stage's end waits for an older journal of the same run


def main(arguments: list[str]) -> None:
    """Deliver while the stage lives; exit status 1 when something had to wait."""
    (folder,) = paths(arguments, "journal")
    _give_way()
    journal = Journal(folder)  # the stage has handed on its lock
    os.chdir(project_root())  # an experiment's own folder may go away
    trains = journal.folder.name.endswith("-train")
    if trains:
        _keep_environment(journal)
    delivery: Delivery | None = None
    monitor: SystemMetricsMonitor | None = None
    earlier_went = stage_ended = blocked = False
    give_up, complaint = 0.0, ""
    while True:
        try:
            blocked = False
            if not earlier_went:
                deliver_waiting(without=journal)
                earlier_went = True
            if delivery is None or not delivery.run_id:
                let_go_first(journal)
            delivery = delivery or Delivery(journal)
            delivery.advance()
            complaint = ""
        except EarlierJournalError as error:
            delivery, earlier_went, blocked = None, False, True
            if stage_ended and time.monotonic() > give_up:
                complaint = _complain(error, journal)
        except Exception as error:  # whatever it is, the stage goes on, and the journal keeps what was not delivered
            delivery = None
            complaint = complaint or _complain(error, journal)
        if stage_ended and (complaint or not blocked):
            break
        if delivery and delivery.run_id and not monitor and trains:
            monitor = _watch_system(delivery)
        begun = delivery is not None and bool(delivery.run_id)
        if complaint or begun:
            with suppress(OSError):  # a full disk: training waits a little
                journal.begun.touch()
        interval = DELIVERY_S if complaint or begun else FIRST_DELIVERY_S
        if stage_ended:
            time.sleep(FIRST_DELIVERY_S)
        elif select.select([sys.stdin], [], [], interval)[0]:
            stage_ended, give_up = True, time.monotonic() + EARLIER_S
            if monitor:
                _stop_watching(monitor)
            if complaint:
                break  # nobody waits for a store that is away: the next stage tries again
    if delivery is None:
        sys.exit(1)
    close(delivery)


def _give_way() -> None:
    """The cores are for training. Linux's scheduler may take a session for a group, which has a niceness of its own."""
    os.nice(NICENESS)
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(NICENESS), encoding="ascii")


def _complain(error: Exception, journal: Journal) -> str:
    line = f"MLflow: {first_line(error)}; this run waits in {journal.folder}, classifier sync delivers it"
    print(line, file=sys.stderr, flush=True)
    return line


def _watch_system(delivery: Delivery) -> SystemMetricsMonitor:
    monitor = SystemMetricsMonitor(  # type: ignore[no-untyped-call]
        delivery.run_id, sampling_interval=SYSTEM_METRICS_S, resume_logging=delivery.resumed
    )
    monitor.start()  # type: ignore[no-untyped-call]
    return monitor


def _stop_watching(monitor: SystemMetricsMonitor) -> None:
    """With what was sampled since it last logged, or a short training would have nothing."""
    monitor.finish()  # type: ignore[no-untyped-call]
    try:
        monitor.publish_metrics(monitor.aggregate_metrics())  # type: ignore[no-untyped-call]
        monitor.mlflow_logger.flush()  # type: ignore[no-untyped-call]
    except Exception as error:
        print(f"MLflow: {first_line(error)}; the last system metrics are lost", file=sys.stderr, flush=True)


def _keep_environment(journal: Journal) -> None:
    """Every installed package's version beside the code, before anything of it is delivered."""
    packages = {found.name: found.version for found in distributions()}
    file = journal.folder / "files/code/environment.json"
    write_json(file, {"python": platform.python_version(), "platform": platform.platform(), "packages": packages})


if __name__ == "__main__":
    run(main, "recorder")
