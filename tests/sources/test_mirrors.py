from __future__ import annotations

import pytest

from classifier.sources.mirrors import MirrorError, configured_mirrors, pieces_of


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    for name in ("PIPELINE_ROOT", "DVC_ROOT", "DATA_MIRROR"):
        monkeypatch.delenv(name, raising=False)


def content_of(mirror: str) -> bytes:
    return b"".join(chunk for chunk, _ in pieces_of(mirror, "file.gz"))


def test_data_mirror_goes_before_download_mirror(monkeypatch):
    assert configured_mirrors(None) == []
    assert configured_mirrors("b") == ["b"]
    monkeypatch.setenv("DATA_MIRROR", "http://a/")
    assert configured_mirrors("b") == ["http://a/", "b"]
    assert configured_mirrors(None) == ["http://a/"]
    monkeypatch.setenv("DATA_MIRROR", "")
    assert configured_mirrors("b") == ["b"]


def test_another_scheme_is_refused():
    with pytest.raises(ValueError, match="mirror ftp://host: allowed are addresses with http, https or file"):
        configured_mirrors("ftp://me:secret@host")


def test_a_relative_folder_starts_at_the_root_of_the_project_that_a_person_works_in(tmp_path, monkeypatch):
    """In a sweep DVC_ROOT is the clone."""
    for place in ("project", "root", "elsewhere"):
        (tmp_path / place / "data").mkdir(parents=True)
        (tmp_path / place / "data" / "file.gz").write_text(place)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert content_of("data") == b"elsewhere"
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "root"))
    assert content_of("data") == b"root"
    assert content_of("../elsewhere/data/") == b"elsewhere"
    assert content_of(str(tmp_path / "elsewhere" / "data")) == b"elsewhere"
    monkeypatch.setenv("PIPELINE_ROOT", str(tmp_path / "project"))
    assert content_of("data") == b"project"


def test_a_folder_may_be_an_address_or_begin_at_home(tmp_path, monkeypatch):
    folder = tmp_path / "a b"
    folder.mkdir()
    (folder / "file.gz").write_text("content")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert content_of(folder.as_uri()) == b"content"
    assert content_of("~/a b") == b"content"


def test_pieces_come_with_the_size_of_the_whole(tmp_path):
    (tmp_path / "file.gz").write_bytes(bytes(100_000))
    pieces = list(pieces_of(str(tmp_path), "file.gz"))
    assert sum(len(chunk) for chunk, _ in pieces) == 100_000
    assert {total for _, total in pieces} == {100_000}


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "file.gz").mkdir()
    with pytest.raises(MirrorError, match=r"file\.gz: Is a directory"):
        content_of(str(tmp_path))
