"""A full, failing or read-only disk at every place where the pipeline writes."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.faults.disk import all_cases
from tests.faults.sites import SITES
from tests.faults.writers import MET, NOT_MET
from tests.samples import ROOT


@pytest.mark.slow
def test_every_failed_write_prints_one_line_and_keeps_earlier_files(attack):
    row = attack("disk full, EIO, EACCES, short write, killed, at every write of ours")
    command = [sys.executable, "-m", "tests.faults.disk", json.dumps(row.some(all_cases()))]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    for line in ended.stdout.splitlines():
        result = json.loads(line)
        with row.case(f"{result['site']}, {result['fault']}"):
            assert not result["problem"], result["problem"]
    assert ended.returncode == 0, ended.stderr
    row.verdict()


WRITERS = {"write_atomic", "write_json", "write_checksummed", "write_text", "write_bytes", "mkstemp", "touch"}
WRITERS |= {"copytree", "copyfile", "copy2", "to_csv", "to_parquet", "to_pickle", "save_file"}


def writes(call: ast.Call) -> bool:
    name = ast.unparse(call.func)
    constants = [each.value for each in (*call.args, *(word.value for word in call.keywords)) if is_text(each)]
    match name.rpartition(".")[2]:
        case "open" | "fdopen":
            return any(set(mode) & set("wax+") and set(mode) <= set("wax+bt") for mode in constants)
        case "rename" | "replace":  # a path's method has one argument, a string's two, a table's keyword arguments
            return "." in name and len(call.args) == 1 and not call.keywords
        case "to_csv" | "to_parquet":  # without a path they return text or bytes
            return bool(call.args)
        case last:
            return name in ("os.write", "shutil.copy") or last in WRITERS


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def places(tree: ast.AST, names: tuple[str, ...] = ()) -> Iterator[str]:
    """Qualified names of the functions that write."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Call) and writes(node):
            yield ".".join(names)
        inner = (*names, node.name) if isinstance(node, ast.FunctionDef | ast.ClassDef) else names
        yield from places(node, inner)


def test_every_function_that_writes_is_covered_by_a_site_or_listed_with_a_reason():
    found = set()
    for path in (path for package in ("classifier", "stages") for path in (ROOT / package).rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found |= {f"{module}:{name}" for name in places(ast.parse(path.read_text(encoding="utf-8")))}
    assert found == MET.keys() | NOT_MET.keys()
    assert not MET.keys() & NOT_MET.keys()
    assert set(MET.values()) <= SITES.keys()


@pytest.mark.parametrize(
    "line",
    [
        *("write_atomic(path, b'')", "path.open('ab')", "open(path, mode='w')", "path.write_text('')", "path.touch()"),
        *("os.write(handle, b'')", "tempfile.mkstemp()", "shutil.copytree(a, b)", "a.rename(b)", "a.replace(b)"),
        *("os.fdopen(handle, 'wb')", "table.to_csv(path)", "save_file(tensors, path)"),
    ],
)
def test_every_way_to_write_is_found(line):
    assert list(places(ast.parse(f"class A:\n    def b(self):\n        {line}\n"))) == ["A.b"]


def test_calls_that_do_not_write_are_ignored():
    lines = ("path.open('rb')", "path.open()", "'a'.replace('b', 'c')", "table.rename(columns={})", "table.to_csv()")
    assert not list(places(ast.parse("\n".join(lines))))
