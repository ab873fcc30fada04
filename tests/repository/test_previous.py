from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from classifier.repository.dvc import dvc_command, dvc_environment
from classifier.repository.previous import previous_files

PIPELINE = """
stages:
  make:
    cmd: mkdir out && echo one > out/a.txt && echo two > out/b.txt
    outs: [out]
"""


def test_the_files_of_an_output_that_dvc_removed_are_found_in_its_cache(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = Path("out")
    assert previous_files(out) == {}, "neither output nor dvc.lock"
    Path("dvc.yaml").write_text(PIPELINE)
    for command in (["init", "-q", "--no-scm"], ["repro", "-q"]):
        subprocess.run(dvc_command(*command), check=True, env=dvc_environment())
    assert previous_files(out) == {name: out / name for name in ("a.txt", "b.txt")}
    shutil.rmtree(out)
    found = previous_files(out)
    assert {name: path.read_text() for name, path in found.items()} == {"a.txt": "one\n", "b.txt": "two\n"}
    found["b.txt"].unlink()
    assert previous_files(out).keys() == {"a.txt"}
    shutil.rmtree(".dvc/cache")
    assert previous_files(out) == {}
