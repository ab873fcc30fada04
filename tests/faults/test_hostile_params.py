"""Hostile params.yaml: refused within two seconds; nothing is executed and no file changed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from classifier.params import load_params, parse_params
from tests.faults.attack import cases
from tests.faults.watch import nothing_happens
from tests.samples import ROOT

TEXT = (ROOT / "params.yaml").read_text()
PARAMS = parse_params(TEXT, Path("params.yaml"))
VALUES = [(stage, key) for stage, section in YAML(typ="safe").load(TEXT).items() for key in section if stage != "sweep"]
SLOW_S = 2.0
DEEP = (100, 1000, 2000, 10_000)  # levels, far above the limit
RUNS = "touch ran"
HOSTILE = [
    *(f"$({RUNS})", f"`{RUNS}`", f"; {RUNS}", f"| {RUNS}", "${HOME}", f"'; {RUNS}; '", f"\\n{RUNS}\\n"),
    *(f"!!python/object/apply:os.system ['{RUNS}']", f"!!python/object/new:os.system ['{RUNS}']"),
    *("!!python/name:os.system ''", "!!python/module:os ''", f"!!python/object/apply:eval ['{RUNS}']"),
    *(f"!!js/function 'function() {{ {RUNS} }}'", "!!binary aGVsbG8=", "!!set {a}", "!!timestamp 2001-01-01", "!x y"),
    *(".nan", ".inf", "-.inf", "1e400", "-1e400", "-1", "-0.5", "1000000000", "1" + "0" * 300, "9" * 5000),
    *("0x" + "f" * 30_000, "true", "null_", "~0", "[]", "{}", "[[[[[]]]]]", "{a: {b: {c: 1}}}", "''"),
    *("../../etc/passwd", "/etc/passwd", "~/.ssh/id_rsa", "file:///etc/passwd", "ftp://example.org", "\\\\host\\share"),
    *("x" * 1_000_000, "'" + "é" * 500_000 + "'", "[" * 10_000, "[" + "1," * 400_000 + "1]", "'" + "\\n" * 100_000),
    *(opening * levels for opening in ("[", "{", "[{", "{a: ", "[? ") for levels in DEEP),
    *("[" * levels + "]" * levels for levels in DEEP),
    *("*unknown", "&a [*a]", "&a {b: *a}", "'unfinished", '"\\ud800"', '"\\0"', "\x00", "\x07", "\ufeff", "%TAG ! x"),
]
# Mirrors and names are free text, tested below: they are never executed or opened.
ANY_SIZE = {"seed", "log_every", "checkpoint_every", "freeze"}  # any large number is valid
FREE = {
    *(("download", "mirror"), ("download", "folder"), ("download", "table")),
    *(("train", "pretrained_file"), ("promote", "model")),
}
ALLOWED = {  # values of the list above that these keys may have
    *(("download", "groups", "-1"), ("normalize", "channels", "true"), ("normalize", "invert", "true")),
    *(("train", "network", "null_"), ("train", "deterministic", "true"), ("evaluate", "corruptions", "[]")),
}


def with_value(stage: str, key: str, value: str) -> str:
    lines = TEXT.splitlines(keepends=True)
    start = next(number for number, line in enumerate(lines) if line.startswith(f"{stage}:"))
    number = next(number for number, line in enumerate(lines[start:], start) if line.startswith(f"  {key}:"))
    lines[number] = f"  {key}: {value}\n"
    while lines[number + 1].startswith("   "):  # the rest of a value on several lines
        del lines[number + 1]
    return "".join(lines)


def bomb(kind: str) -> str:
    """Nine levels of nine references: 400 million items when expanded."""
    opening, closing, item = ("[", "]", "{}") if kind == "list" else ("{", "}", "k{number}: {reference}")
    lines = [f"a0: &a0 {opening}{'x' if kind == 'list' else 'x: 1'}{closing}"]
    for level in range(1, 10):
        items = [
            item.format(f"*a{level - 1}") if kind == "list" else item.format(number=number, reference=f"*a{level - 1} ")
            for number in range(9)
        ]
        lines.append(f"a{level}: &a{level} {opening}{', '.join(items)}{closing}")
    return "\n".join(lines) + "\n"


def whole_files() -> Iterator[str]:
    for kind in ("list", "map"):
        yield bomb(kind) + TEXT
        yield TEXT + bomb(kind)
        yield bomb(kind) + TEXT.replace("mirror: null", "mirror: *a9")
        yield bomb(kind) + TEXT.replace("choices: [16, 32, 64]", "choices: *a9")
    for stage, key in VALUES:
        yield re.sub(rf"(?m)^({stage}:.*)$", rf"\1\n  {key}: 1", TEXT)  # twice in one section
    yield TEXT + "train: {}\n"  # a section twice
    yield TEXT + "---\n" + TEXT
    yield "".join(f"k{number}: 1\n" for number in range(100_000)) + TEXT
    for levels in DEEP:
        yield from (opening * levels for opening in ("[", "{", "- ", "? ", "- ? ", "[\n", "{\n"))
        yield TEXT + "deep: " + "[" * levels
    for levels in (50, 100, 250):  # more would exceed the size limit
        for line in ("a:", "-", "? a"):
            yield "".join(" " * level + line + "\n" for level in range(levels))
    yield "<<: [*a, *b]\n" + TEXT
    yield "# " + "x" * 1_000_000 + "\n" + TEXT
    yield TEXT + "x" * 1_000_000 + ": 1\n"


def hostile_files() -> list[str]:
    files = [
        text
        for stage, key in VALUES
        for value in HOSTILE
        if (text := with_value(stage, key, value)) != TEXT
        and (stage, key) not in FREE
        and (stage, key, value) not in ALLOWED
        and not (key in ANY_SIZE and re.fullmatch(r"\d{1,4300}|0x\w+", value))
    ]
    return [*files, *whole_files()]


def refused(path: Path) -> tuple[str, float]:
    """Return the message and the seconds that it took."""
    started = time.monotonic()
    with nothing_happens(), pytest.raises((ValueError, OSError)) as caught:
        load_params(path)
    return str(caught.value), time.monotonic() - started


def test_it_is_refused_quickly_and_nothing_happens(attack, tmp_path: Path, monkeypatch):
    row = attack("hostile params.yaml")
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "params.yaml"
    files = hostile_files()
    whole = list(whole_files())
    picked = row.random.sample(files[: -len(whole)], cases(200)) + row.some(whole)
    for text in picked:
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        with row.case(text if text in whole else next(line for line in text.splitlines() if line not in TEXT)):
            said, took = refused(path)
            if took >= SLOW_S:  # the machine may be busy
                said, took = refused(path)
            assert took < SLOW_S, f"{took:.1f} s"
            assert said.startswith(str(path)), said[:300]
            assert len(said) < 20_000, len(said)
            assert [entry.name for entry in tmp_path.iterdir()] == ["params.yaml"]
    row.verdict()


def test_a_stage_ends_before_any_work(attack, tmp_path: Path):
    row = attack("hostile params.yaml, the stage as a process")
    for number, text in enumerate(row.random.sample(hostile_files(), cases(20))):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "params.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
        command = [sys.executable, "-m", "stages.download", "params.yaml", "raw"]
        environment = {"PYTHONPATH": str(ROOT), "DVC_ROOT": str(folder), "PATH": ""}
        with row.case(f"{text[:100]!r}"):
            ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
            assert ended.returncode == 1, ended.stderr
            assert ended.stderr.startswith("download: params.yaml"), ended.stderr[:500]
            assert "Traceback" not in ended.stderr
            assert {entry.name for entry in folder.iterdir()} <= {"params.yaml", ".pipeline"}
    row.verdict()


@pytest.mark.parametrize(
    "mirror", [f"$({RUNS})", f"`{RUNS}`", f"; {RUNS}", "../../../etc", "~root", f"file:///$({RUNS})"]
)
def test_free_text_is_looked_up_and_never_run(tmp_path: Path, mirror: str):
    (tmp_path / "params.yaml").write_text(with_value("download", "mirror", f"'{mirror}'"))
    command = [sys.executable, "-m", "stages.download", "params.yaml", "raw"]
    environment = {"PYTHONPATH": str(ROOT), "DVC_ROOT": str(tmp_path), "PATH": "/usr/bin:/bin"}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr  # digits come from scikit-learn before any mirror
    assert {entry.name for entry in tmp_path.iterdir()} == {"params.yaml", "raw", ".pipeline"}


scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=50)
)
trees = st.recursive(scalars, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=9), inner))


FEW = settings(max_examples=cases(1000), deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@FEW
@given(place=st.sampled_from(VALUES), value=trees)
@example(place=("train", "epochs"), value=10**9)
def test_any_value_is_used_unchanged_or_refused_with_its_key(place, value):
    stage, key = place
    tree = PARAMS.model_dump()
    tree[stage][key] = value
    said = ""
    try:
        params = parse_params(json.dumps(tree), Path("params.yaml"))  # JSON is YAML
    except ValueError as error:
        said = str(error)
    assert key in said or getattr(getattr(params, stage), key) == value, said


@FEW
@given(text=st.text(max_size=300), at=st.integers(0, len(TEXT)))
def test_any_text_is_params_or_a_clear_error(text, at):
    said = "params.yaml"
    with nothing_happens():
        try:
            parse_params(TEXT[:at] + text + TEXT[at:], Path("params.yaml"))
        except ValueError as error:
            said = str(error)
    assert said.startswith("params.yaml")


def test_the_largest_values_together_do_not_exhaust_memory():
    """Memory of an epoch is bounded by the data, not by the params."""
    largest = {"train.epochs": 100_000, "train.batch_size": 65_536, "train.seeds": 1024, "train.log_every": 10**18}
    params = load_params(ROOT / "params.yaml").override(largest)
    assert params.train.epochs * params.train.seeds < 2**31
    for key in ("train.epochs", "train.batch_size", "train.seeds"):
        with pytest.raises(ValueError, match=key):
            params.override({key: 10**9})
