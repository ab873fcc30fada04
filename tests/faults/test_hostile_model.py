"""Forged model directories and checkpoints with valid hashes and checksums: refused in one line, nothing executed."""

from __future__ import annotations

import json
import os
import pickle  # noqa: TID251, what the test refuses
import struct
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from classifier.networks.model_dir import build, read_model, write_model
from classifier.project.files import sha256
from classifier.training.checkpoint import Checkpoints
from classifier.training.engine import Engine
from tests.faults import fuzz
from tests.faults.fuzz import with_checksum
from tests.faults.watch import nothing_happens
from tests.samples import train_params, write_digits

HASH = "0" * 64


class Payload:
    """A payload that a disguised pickle would execute when loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ran",)


def packed(header: object, body: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with an arbitrary header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def raw(content: bytes) -> torch.Tensor:
    return torch.tensor(list(content), dtype=torch.uint8)


def disguised() -> dict[str, bytes]:
    torch_file, archive = BytesIO(), BytesIO()
    torch.save({"fc3.bias": torch.zeros(10)}, torch_file)  # noqa: TID251, what the test refuses
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(Payload()))
    return {
        **{f"pickle, protocol {number}": pickle.dumps(Payload(), number) for number in range(6)},
        "torch.save": torch_file.getvalue(),
        "a zip with a pickle": archive.getvalue(),
        "a pickle behind a header's length": packed(pickle.dumps(Payload())),
        "a pickle as metadata": packed({"__metadata__": {"pickle": pickle.dumps(Payload(), 0).decode()}}),
    }


def containers() -> dict[str, bytes]:
    """Files that violate the format."""
    one = {"dtype": "F32", "shape": [10], "data_offsets": [0, 40]}
    return {
        "empty": b"",
        "no header": bytes(7),
        "header of 2^64 - 1 bytes": packed(b"{}", length=2**64 - 1),
        "header of 2^40 bytes": packed(b"{}", length=2**40),
        "header of 100 MB": packed(b"{" + b" " * 100_000_001 + b"}"),
        "header longer than the file": packed(b"{}", length=1000),
        "header of brackets": packed(b"[" * 100_000),
        "header is no JSON": packed(b"\xff\xfe{}"),
        "header is a list": packed([one]),
        "overlapping offsets": packed({"a": one, "b": {**one, "data_offsets": [20, 60]}}, bytes(60)),
        "the same offsets": packed({"a": one, "b": one}, bytes(40)),
        "offsets backwards": packed({"a": {**one, "data_offsets": [40, 0]}}, bytes(40)),
        "offsets outside": packed({"a": {**one, "data_offsets": [0, 40]}}, bytes(20)),
        "offsets of 2^63": packed({"a": {**one, "data_offsets": [2**63, 2**63 + 40]}}, bytes(40)),
        "negative offsets": packed({"a": {**one, "data_offsets": [-40, 0]}}, bytes(40)),
        "a hole": packed({"a": {**one, "data_offsets": [10, 50]}}, bytes(50)),
        "a shape that overflows": packed({"a": {**one, "shape": [2**32, 2**32, 2**32]}}, bytes(40)),
        "a negative shape": packed({"a": {**one, "shape": [-10]}}, bytes(40)),
        "an unknown type": packed({"a": {**one, "dtype": "OBJECT"}}, bytes(40)),
        "more bytes at the end": packed({"a": one}, bytes(41)),
        **disguised(),
    }


def tensors(good: bytes) -> dict[str, bytes]:
    """Valid files with wrong tensors."""
    changes: dict[str, Callable[[dict[str, torch.Tensor]], Any]] = {
        "none": lambda state: state.clear(),
        "one missing": lambda state: state.pop("fc3.bias"),
        "one more": lambda state: state.update(more=torch.zeros(1)),
        "another class count": lambda state: state.update(
            {"fc3.weight": torch.zeros(11, 84), "fc3.bias": torch.zeros(11)}
        ),
        "other channels": lambda state: state.update({"conv1.weight": torch.zeros(6, 3, 5, 5)}),
        "transposed": lambda state: state.update({"fc2.weight": torch.zeros(120, 84)}),
        "a scalar": lambda state: state.update({"fc3.bias": torch.tensor(0.0)}),
        "one value for all": lambda state: state.update({"fc3.bias": torch.zeros(1)}),
        "no values": lambda state: state.update({"fc3.bias": torch.zeros(0)}),
        "float64": lambda state: state.update({"fc3.bias": torch.zeros(10).double()}),
        "float16": lambda state: state.update({"fc3.bias": torch.zeros(10).half()}),
        "integers": lambda state: state.update({"fc3.bias": torch.zeros(10, dtype=torch.int64)}),
        "NaN weights": lambda state: state["conv1.weight"][0, 0, 0].fill_(float("nan")),
        "one weight Inf": lambda state: state["fc1.weight"][-1, -1:].fill_(float("inf")),
        "one weight -Inf": lambda state: state["fc3.bias"][-1:].fill_(-float("inf")),
    }
    files = {}
    for name, change in changes.items():
        state = load(good)
        change(state)
        files[name] = save(state)
    return files


METAS: dict[str, dict[str, Any]] = {
    "another architecture": {"architecture": "resnet"},
    "an architecture with a path": {"architecture": "../../evil"},
    "another class count": {"class_names": ["a", "b", "c"]},
    "a million classes": {"class_names": ["x"] * 1_000_000},
    "one class": {"class_names": ["x"]},
    "no channels": {"channels": 0, "mean": [], "std": []},
    "10^9 channels": {"channels": 10**9},
    "std of 0": {"std": [0.0]},
    "std of 1e-300": {"std": [1e-300]},
    "mean of 1e308": {"mean": [1e308]},
    "two means": {"mean": [0.1, 0.1]},
    "replicas elsewhere": {"replicas": {"../../../etc/passwd": HASH}},
    "an absolute replica": {"replicas": {"/etc/passwd": HASH}},
    "a hash that is none": {"weights_sha256": "0"},
    "a key too many": {"__reduce__": "os.system"},
}
TEXTS = {
    "NaN": b'{"mean": [NaN], "seal": ""}',
    "nested": b"[" * 1_000_000,
    "16 MB and more": b'{"seal": "' + b"x" * (17 << 20) + b'"}',
    "a pickle": pickle.dumps(Payload()),
    "empty": b"",
    "twice the key": b'{"seal": "a", "seal": "b"}',
}


def test_a_forged_model_directory(attack, tmp_path: Path, monkeypatch):
    row = attack("hostile model directory")
    monkeypatch.chdir(tmp_path)
    folder, meta = tmp_path / "model", write_digits(tmp_path / "data")
    write_model(folder, {0: build(meta)}, 0, meta)
    weights, known = ((folder / name).read_bytes() for name in ("weights.safetensors", "meta.json"))
    forged = {f"weights: {name}": (content, known) for name, content in (containers() | tensors(weights)).items()}
    forged |= {f"meta.json: {name}": (weights, with_checksum(known, **values)) for name, values in METAS.items()}
    forged |= {f"meta.json: {name}": (weights, content) for name, content in TEXTS.items()}
    for name, (content, text) in row.some(list(forged.items())):
        (folder / "weights.safetensors").write_bytes(content)
        (folder / "meta.json").write_bytes(
            with_checksum(text, weights_sha256=sha256(content)) if text == known else text
        )
        with row.case(name), nothing_happens(), pytest.raises(ValueError, match=r"weights\.safe|meta\.json") as caught:
            read_model(folder)
        check(row, name, caught)
    row.verdict()


def test_a_forged_checkpoint(attack, tmp_path: Path, monkeypatch, capsys):
    """Each has the right name for its hash: it is dropped, or refused with the path to remove."""
    row = attack("hostile checkpoint")
    monkeypatch.chdir(tmp_path)
    meta, folder = write_digits(tmp_path / "data"), tmp_path / "checkpoints"
    engine = Engine(build(meta), train_params(), torch.device("cpu"))
    row_of = {"step": 1, "epoch": 1, "images": 30, "learning_rate": 0.1}
    state, lines = engine.state(), json.dumps(row_of).encode() + b"\n"
    good = state | {"rows": raw(lines)}
    header = {"position": json.dumps({"step": 1, "window": 0})}

    def changed(name: str, value: torch.Tensor) -> bytes:
        return save(good | {name: value}, header)

    def standing(**position: Any) -> bytes:
        return save(good, {"position": json.dumps({"step": 1, "window": 0} | position)})

    bias = "weights/fc3.bias"
    forged = containers() | {
        "no position": save(good),
        "a position that is none": save(good, {"position": "[]"}),
        "a position that is a pickle": save(good, {"position": pickle.dumps(Payload(), 0).decode()}),
        **{f"step {step!r:.20}": standing(step=step) for step in (-1, 0, 2, 3, 10**12, 10**400, 0.5, None, "one", [])},
        **{f"window {count!r:.20}": standing(window=count) for count in (-1, 1, 10**12, None)},
        "the last step without its rows": standing(step=2),
        "no history": save(state, header),
        "an empty history": changed("rows", raw(b"")),
        "a history twice": changed("rows", raw(lines * 2)),
        "a history of another step": changed("rows", raw(lines.replace(b'"step": 1', b'"step": 2'))),
        "a history of a negative step": changed("rows", raw(lines.replace(b'"step": 1', b'"step": -1'))),
        "a history that is cut off": changed("rows", raw(lines[:20])),
        "a history of brackets": changed("rows", raw(b"[" * 100_000)),
        "a history that is a pickle": changed("rows", raw(pickle.dumps(Payload()))),
        "a history of numbers": changed("rows", torch.zeros(10)),
        "a history in bfloat16": changed("rows", torch.zeros(10, dtype=torch.bfloat16)),
        "one missing": save({name: value for name, value in good.items() if name != bias}, header),
        "one more": changed("weights/more", torch.zeros(1)),
        "another class count": changed(bias, torch.zeros(11)),
        "one value for all": changed(bias, torch.zeros(1)),
        "a scalar": changed(bias, torch.tensor(0.0)),
        "float64": changed(bias, torch.zeros(10).double()),
        "NaN weights": changed(bias, torch.full((10,), float("nan"))),
        "Inf momentum": changed("optimizer/fc3.bias/momentum_buffer", torch.full((10,), float("inf"))),
    }

    def resume() -> None:
        found = Checkpoints(folder, 1).load(epochs=2, per_epoch=1, window=1)
        if found is None:
            raise ValueError(capsys.readouterr().err.strip())
        engine.load(found.tensors)

    folder.mkdir()
    path = folder / f"000000000001-{sha256(save(good, header))}.safetensors"
    path.write_bytes(save(good, header))
    resume()  # the unedited checkpoint is valid
    path.unlink()
    for name, content in row.some(list(forged.items())):
        path = folder / f"000000000001-{sha256(content)}.safetensors"
        path.write_bytes(content)
        with row.case(name), nothing_happens(folder), pytest.raises(ValueError, match=r"checkpoint|state") as caught:
            resume()
        check(row, name, caught)
        path.unlink(missing_ok=True)
        weights = engine.state()
        assert all(torch.equal(value, weights[name]) for name, value in state.items()), "it was partially loaded"
    row.verdict()


def check(row: Any, name: str, caught: Any) -> None:
    """The message is one line of reasonable length, and nothing was executed."""
    if said := str((getattr(caught, "_excinfo", None) and caught.value) or ""):
        with row.case(f"{name}: what it says"):
            row.run -= 1
            assert "\n" not in said, said
            assert len(said) < 1500, said[:300]
    assert not Path("ran").exists()


def test_the_fuzzer_finds_nothing(attack, capsys):
    """Each case is one second with its own seed; `python -m tests.faults.fuzz 3600` runs for an hour."""
    row = attack("fuzzed files of every format, seconds")
    for second in row.some(range(20)):
        with row.case(second):
            assert fuzz.main(1, seed=second) == 0, capsys.readouterr().err
    row.verdict()
