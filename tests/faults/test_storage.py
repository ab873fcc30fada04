"""A disk that is full, broken or forbidden, at every place where the pipeline writes."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.faults.sites import MET, NOT_MET, SITES, all_cases
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


WRITERS = {"write_atomic", "write_json", "write_checksummed", "write_text", "write_bytes", "mkstemp", "touch"}
WRITERS |= {"copytree", "copyfile", "copy", "copy2", "to_csv", "to_parquet", "to_pickle", "save_file"}


def writes(call: ast.Call) -> bool:
    name = ast.unparse(call.func)
    constants = [each.value for each in (*call.args, *(word.value for word in call.keywords)) if is_text(each)]
    match name.rpartition(".")[2]:
        case "open" | "fdopen":
            return any(set(mode) & set("wax+") and set(mode) <= set("wax+bt") for mode in constants)
        case "rename" | "replace":  # a path's have one argument; a text's have two, a table's have names
            return "." in name and len(call.args) == 1 and not call.keywords
        case "to_csv" | "to_parquet":  # without a path they give text or bytes
            return bool(call.args)
        case last:
            return name == "os.write" or last in WRITERS


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def places(tree: ast.AST, names: tuple[str, ...] = ()) -> Iterator[str]:
    """The functions in which something is written, each with its classes and functions around it."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Call) and writes(node):
            yield ".".join(names)
        inner = (*names, node.name) if isinstance(node, ast.FunctionDef | ast.ClassDef) else names
        yield from places(node, inner)


def test_every_function_that_writes_is_met_by_a_site_or_says_why_not():
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
def test_the_test_sees_each(line):
    assert list(places(ast.parse(f"class A:\n    def b(self):\n        {line}\n"))) == ["A.b"]


def test_what_it_lets_pass():
    lines = ("path.open('rb')", "path.open()", "'a'.replace('b', 'c')", "table.rename(columns={})", "table.to_csv()")
    assert not list(places(ast.parse("\n".join(lines))))
