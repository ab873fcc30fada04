"""Run the benchmarks, print the tables and save them to benchmarks/results/<device>.json and .md.

    python -m benchmarks [--only SECTION,...] [--rounds N] [--device auto|cpu|cuda|mps] [--quick]

MNIST is read from the folder or address in DATA_MIRROR, by default ../shared/data/mnist. `--quick` tests the harness
on the digits in one round, and saves nothing unless --results is given.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.bench import Bench, take_turns
from benchmarks.project import ROOT, Project
from benchmarks.results import document
from benchmarks.sections import SECTIONS

SHARED = ROOT / "../shared/data/mnist"
BUSY = 0.5  # one-minute load average above which the results are marked as measured on a busy machine


def main(arguments: list[str]) -> None:
    options = parse(arguments)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        project = Project(Path(folder), mirror(options.quick), epochs=1 if options.quick else None)
        machine = project.module("benchmarks.machine", options.device).said
        load = os.getloadavg()[0]
        say(describe(machine, options.rounds, load))
        bench = Bench(project, machine["device"], options.quick, say)
        sections = {name: SECTIONS[name](bench) for name in options.only}
        samples = take_turns(sections.values(), options.rounds, say)
        rounds = {name: min(options.rounds, section.rounds) for name, section in sections.items()}
        found = {
            name: {
                "measured": describe(machine, rounds[name], load),
                "rounds": rounds[name],
                "load_before": load,
                "machine": machine,
                **section.results(samples).as_json(),
                "samples": {name: [vars(sample) for sample in samples[name]] for name in section.processes},
            }
            for name, section in sections.items()
        }
    print("\n" + document(found))
    if options.results:
        keep(options.results, machine["device"], found)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.split("\n")[0])
    parser.add_argument("--only", help=f"comma-separated sections: {', '.join(SECTIONS)}", default=",".join(SECTIONS))
    parser.add_argument("--rounds", type=int, help="default 5, or 1 with --quick")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--quick", action="store_true", help="test the harness on the digits")
    parser.add_argument("--results", type=Path, help="folder for <device>.json and .md; default benchmarks/results")
    options = parser.parse_args(arguments)
    options.only = options.only.split(",")
    if unknown := [name for name in options.only if name not in SECTIONS]:
        parser.error(f"no section {', '.join(unknown)}: allowed are {', '.join(SECTIONS)}")
    options.rounds = options.rounds or (1 if options.quick else 5)
    options.results = options.results or (None if options.quick else ROOT / "benchmarks/results")
    return options


def mirror(quick: bool) -> str:
    """Address or folder of the MNIST files. Relative folders are relative to the repository's root."""
    named = os.environ.get("DATA_MIRROR")
    if named and "://" in named:
        return named
    folder = ROOT / (Path(named).expanduser() if named else SHARED)
    if not quick and not (folder / "train-images-idx3-ubyte.gz").is_file():
        sys.exit(f"benchmarks: no MNIST files in {folder}: name their folder or address in DATA_MIRROR")
    return str(folder.resolve())


def describe(machine: dict[str, Any], rounds: int, load: float) -> str:
    """Describe date, hardware and versions in one line."""
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    hardware = f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads"
    gpu = f"{machine['gpu']}, " if machine["gpu"] else ""
    busy = f"; the machine was busy, load {load:.1f}" if load > BUSY else ""
    date = datetime.now(UTC).date()
    return f"{date}, {gpu}{hardware}, {rounds} round{'s' if rounds > 1 else ''}, median (min to max); {versions}{busy}"


def keep(folder: Path, device: str, found: dict[str, Any]) -> None:
    """Save the sections to the device's file. Sections that were not measured keep their earlier results."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{device}.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    kept = {name: (before | found)[name] for name in SECTIONS if name in before | found}
    path.write_text(json.dumps(kept, indent=1) + "\n")
    path.with_suffix(".md").write_text(document(kept))


def say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {line}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
