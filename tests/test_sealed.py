"""A sealed file gives back what was written, or is refused in one line."""

import json
import re

import pytest
from pydantic import BaseModel, ConfigDict

from classifier.project.files import json_bytes, sha256
from classifier.project.sealed import read_sealed, write_sealed


class Form(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    values: list[float]


CONTENT = Form(name="é", values=[0.1, 1e-9, 3.0])


@pytest.fixture
def path(tmp_path):
    write_sealed(tmp_path / "file.json", CONTENT)
    return tmp_path / "file.json"


def test_what_was_written_is_read_and_equal_values_are_equal_bytes(path, tmp_path):
    assert read_sealed(path, Form, "train") == CONTENT
    write_sealed(tmp_path / "second.json", Form.model_validate(CONTENT.model_dump()))
    assert (tmp_path / "second.json").read_bytes() == path.read_bytes()


def test_another_layout_of_the_same_values_is_the_same(path):
    path.write_text(json.dumps(json.loads(path.read_text())))
    assert read_sealed(path, Form, "train") == CONTENT


@pytest.mark.parametrize(("before", "after"), [("0.1", "0.2"), ("é", "e"), ('"seal": "', '"seal": "0')])
def test_a_changed_value_is_named_with_the_next_command(path, before, after):
    path.write_text(path.read_text().replace(before, after))
    with pytest.raises(ValueError, match=r"file\.json was changed: its contents have SHA-256 .*: run dvc repro -f"):
        read_sealed(path, Form, "train")


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"[]", b"3", b"null", b"{}", b'{"seal": 1}', b"\xff", b"9" * 5000),
        *(b"{" * 100_000, b"[" * 100_000, b'{"a": ' * 50_000),
        *(b'{"name": NaN, "seal": ""}', b'{"name": "\\ud800", "values": [], "seal": ""}'),
    ],
    ids=lambda content: repr(content[:12]),
)
def test_what_is_no_such_file_is_named_in_one_line(path, content):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"file\.json is damaged.*: run dvc repro -f train") as caught:
        read_sealed(path, Form, "train")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_values_of_another_form_are_named_although_the_seal_is_right(path):
    values = {"name": 3, "values": ["x" * 10_000]}
    path.write_bytes(json_bytes(values | {"seal": sha256(json_bytes(values))}))
    with pytest.raises(ValueError, match=re.escape("is damaged (2 problems), the first: name: 3: Input should")):
        read_sealed(path, Form, "train")


def test_a_long_key_is_cut_short(path):
    values = {"name": "", "values": [], "x" * 10_000: 1}
    path.write_bytes(json_bytes(values | {"seal": sha256(json_bytes(values))}))
    with pytest.raises(ValueError, match="is damaged") as caught:
        read_sealed(path, Form, "train")
    assert len(str(caught.value)) < 1000


def test_a_missing_file_names_the_stage(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"file\.json does not exist: run dvc repro train"):
        read_sealed(tmp_path / "file.json", Form, "train")
