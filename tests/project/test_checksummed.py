"""A checksummed file reads back as it was written, or is refused in one line."""

import json
import re

import pytest

from classifier.data.dataset import DatasetMeta
from classifier.networks.model_dir import ModelMeta
from classifier.project.checksummed import Checksummed, read_checksummed, write_checksummed
from classifier.sources.raw import Manifest, RawFile
from classifier.training.report import ReportManifest
from tests.forgery import write_forged


class Form(Checksummed):
    name: str
    values: list[float]


CONTENT = Form(name="é", values=[0.1, 1e-9, 3.0])


@pytest.fixture
def path(tmp_path):
    write_checksummed(tmp_path / "file.json", CONTENT)
    return tmp_path / "file.json"


def test_what_was_written_is_read_and_equal_values_are_equal_bytes(path, tmp_path):
    assert read_checksummed(path, Form, "train") == CONTENT
    write_checksummed(tmp_path / "second.json", Form.model_validate(CONTENT.model_dump()))
    assert (tmp_path / "second.json").read_bytes() == path.read_bytes()


def test_another_layout_of_the_same_values_is_the_same(path):
    path.write_text(json.dumps(json.loads(path.read_text())))
    assert read_checksummed(path, Form, "train") == CONTENT


@pytest.mark.parametrize(
    ("before", "after"), [("0.1", "0.2"), ("é", "e"), ('"seal": "', '"seal": "0'), ("seal", 'seal": 1, "x')]
)
def test_a_changed_value_is_named_with_the_next_command(path, before, after):
    path.write_text(path.read_text().replace(before, after))
    with pytest.raises(ValueError, match=r"file\.json was changed: its contents have SHA-256 .*: run dvc repro -f"):
        read_checksummed(path, Form, "train")


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"[]", b"3", b"null", b"{}", b"\xff", b"9" * 5000),
        *(b"{" * 100_000, b"[" * 100_000, b'{"a": ' * 50_000),
        *(b'{"name": NaN, "seal": ""}', b'{"name": "\\ud800", "values": [], "seal": ""}'),
    ],
    ids=lambda content: repr(content[:12]),
)
def test_what_is_no_such_file_is_named_in_one_line(path, content):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"file\.json is corrupt.*: run dvc repro -f train") as caught:
        read_checksummed(path, Form, "train")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_values_of_another_form_are_named_although_the_checksum_is_right(path):
    write_forged(path, {"name": 3, "values": ["x" * 10_000]})
    with pytest.raises(
        ValueError, match=re.escape("was not written by this pipeline (2 problems), the first: name: 3: Input should")
    ):
        read_checksummed(path, Form, "train")


def test_a_long_key_is_cut_short(path):
    write_forged(path, {"name": "", "values": [], "x" * 10_000: 1})
    with pytest.raises(ValueError, match="is corrupt") as caught:
        read_checksummed(path, Form, "train")
    assert len(str(caught.value)) < 1000


def test_a_missing_file_names_the_stage(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"file\.json does not exist: run dvc repro train"):
        read_checksummed(tmp_path / "file.json", Form, "train")


class Third(Checksummed):
    """`Form` two formats later: `values` is called `numbers`, and there is a unit."""

    UPGRADES = (
        lambda old: {"name": old["name"], "numbers": old["values"]},
        lambda old: old | {"unit": "pixels"},
    )

    name: str
    numbers: list[float]
    unit: str


def test_the_first_format_has_no_number(path):
    assert json.loads(path.read_bytes()).keys() == {"name", "values", "seal"}


@pytest.mark.parametrize(
    "values",
    [
        {"name": "é", "values": [0.1]},
        {"name": "é", "numbers": [0.1], "format": 2},
        {"name": "é", "numbers": [0.1], "unit": "pixels", "format": 3},
    ],
)
def test_every_earlier_format_is_read(path, values):
    write_forged(path, values)
    assert read_checksummed(path, Third, "train") == Third(name="é", numbers=[0.1], unit="pixels")


def test_a_later_format_has_its_number(path):
    write_checksummed(path, Third(name="", numbers=[], unit="mm"))
    assert json.loads(path.read_bytes())["format"] == 3
    assert read_checksummed(path, Third, "train").unit == "mm"


def test_a_format_of_a_newer_version_says_so(path):
    write_forged(path, {"name": "", "anything": 1, "format": 4})
    message = (
        "file.json was written by a newer version of this project, in format 4 (this version reads formats up to 3): "
        "update the project, or run dvc repro -f train"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        read_checksummed(path, Third, "train")


@pytest.mark.parametrize("number", [0, -1, 10**100, 1.0, True, "2", None, [], 2])
def test_a_format_that_no_version_wrote_is_corrupt(path, number):
    write_forged(path, {"name": "", "values": [], "format": number})
    with pytest.raises(ValueError, match=r"is corrupt or was not written by this pipeline.*: run dvc repro -f train"):
        read_checksummed(path, Third, "train")


def test_an_upgrade_of_values_that_no_version_wrote_is_corrupt(path):
    write_forged(path, {"name": ""})
    with pytest.raises(ValueError, match=r"is corrupt or was not written by this pipeline: run dvc repro -f train"):
        read_checksummed(path, Third, "train")


def test_new_fields_come_with_a_new_format():
    """Files of each format exist. Where this fails, append to `UPGRADES`, and add a line for the new format here."""
    known = {
        "Manifest 1": "citation dataset files home licence",
        "Manifest 2": "citation dataset files home images licence",
        "DatasetMeta 2": "channels citation class_names counts decoder excluded files images labels licence mean name "
        "preprocessing ranges size source std",
        "ModelMeta 2": "architecture channels class_names dataset mean preprocessing pretrained ranges replicas "
        "seed std weights_sha256",
        "ReportManifest 1": "files",
    }
    forms = (Manifest, DatasetMeta, ModelMeta, ReportManifest)
    found = {f"{form.__name__} {form.newest_format()}": " ".join(sorted(form.model_fields)) for form in forms}
    assert found.items() <= known.items()
    assert " ".join(sorted(RawFile.model_fields)) == "bytes name sha256 source"
