"""A disk that is full, broken or forbidden, at every place where the pipeline writes."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.faults.sites import all_cases
from tests.samples import ROOT


def test_every_write_fails_in_one_line_and_leaves_what_was_there(attack):
    row = attack("disk full, EIO, EACCES, short write, killed, at every write of ours")
    command = [sys.executable, "-m", "tests.faults.sites", json.dumps(row.some(all_cases()))]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    for line in ended.stdout.splitlines():
        result = json.loads(line)
        with row.case(f"{result['site']}, {result['fault']}"):
            assert not result["problem"], result["problem"]
    assert ended.returncode == 0, ended.stderr
    row.verdict()
