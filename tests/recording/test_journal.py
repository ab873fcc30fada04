"""The journal: what was written whole is read, whatever happened to the rest."""

import errno

import psutil
import pytest

from classifier.recording.journal import Journal, new_journal, waiting_journals


@pytest.fixture
def journal(tmp_path):
    folder = tmp_path / "journal"
    folder.mkdir()
    return Journal(folder)


def kinds(journal):
    return [event["do"] for event in journal.read()[0]]


def test_events_come_back_in_order_with_their_values_and_time(journal):
    journal.append("tags", tags={"a": "ü\n"})
    journal.append("end", status="FINISHED", error=None)
    (first, second), _ = journal.read()
    assert (first["do"], first["tags"]) == ("tags", {"a": "ü\n"})
    assert (second["status"], second["error"]) == ("FINISHED", None)
    assert second["time"] >= first["time"] > 1.7e12


def test_reading_goes_on_behind_what_was_read(journal):
    journal.append("a")
    _, offset = journal.read()
    assert journal.read(offset) == ([], offset)
    journal.append("b")
    events, _ = journal.read(offset)
    assert [event["do"] for event in events] == ["b"]


def test_a_journal_cut_off_at_any_byte_keeps_its_whole_events_and_takes_more(journal):
    journal.append("a", value=1)
    journal.append("b", value=2)
    content = journal.events.read_bytes()
    ends = [number + 1 for number, byte in enumerate(content) if byte == ord("}")]
    for cut in range(len(content) + 1):
        journal.events.write_bytes(content[:cut])
        whole = kinds(journal)
        assert whole == ["a", "b"][: sum(cut > end for end in ends)]  # with the line's end
        journal.append("c")
        finished = ["a", "b"][: sum(cut >= end for end in ends)]
        assert kinds(journal) == [*finished, "c"]


def test_a_line_that_is_still_being_written_is_read_later_not_lost(journal):
    journal.append("a")
    whole = journal.events.read_bytes()
    journal.events.write_bytes(whole + b'\n{"do": "b"')
    _, offset = journal.read()
    with journal.events.open("ab") as file:
        file.write(b', "time": 0}\n')
    events, _ = journal.read(offset)
    assert [event["do"] for event in events] == ["b"]


def test_no_journal_yet_is_an_empty_one(journal):
    assert journal.read() == ([], 0)


def test_a_disk_that_takes_only_part_of_a_line_is_an_error(journal, monkeypatch):
    class Short:
        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def write(self, line):
            return len(line) - 1

    monkeypatch.setattr(type(journal.events), "open", lambda *arguments, **keywords: Short())
    with pytest.raises(
        OSError, match=r"events.jsonl cannot be written: the disk is full \(36 bytes needed, .* free\)"
    ) as error:
        journal.append("a")
    assert error.value.errno == errno.ENOSPC


def test_files_and_folders_are_kept_as_they_are_now(journal, tmp_path):
    folder = tmp_path / "reports"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner/a.txt").write_text("one")
    journal.keep(folder, "train")
    journal.keep(folder / "inner/a.txt", "code/a.txt")
    journal.keep_text("text", "logs/train.txt")
    (folder / "inner/a.txt").write_text("two")
    kept = {path.relative_to(journal.folder / "files"): path.read_text() for path in journal.folder.rglob("*.txt")}
    assert {str(path): text for path, text in kept.items()} == {
        "train/inner/a.txt": "one",
        "code/a.txt": "one",
        "logs/train.txt": "text",
    }


def test_journals_of_the_project_are_listed_oldest_first_until_they_are_removed(workspace):
    journals = [new_journal(stage) for stage in ("train", "evaluate", "train")]
    (workspace / ".pipeline/journal/lock").touch()  # of classifier.project.ownership
    assert [journal.folder for journal in waiting_journals()] == [journal.folder for journal in journals]
    journals[1].append("begin", stage="evaluate")
    journals[1].remove()
    assert [journal.folder for journal in waiting_journals()] == [journals[0].folder, journals[2].folder]


def test_a_journal_comes_after_those_that_wait_though_the_clock_was_set_back(workspace, monkeypatch):
    first = new_journal("train")
    monkeypatch.setattr("time.time_ns", lambda: 1)
    second = new_journal("evaluate")
    assert [journal.folder for journal in waiting_journals()] == [first.folder, second.folder]
    for journal in (first, second):
        journal.remove()


@pytest.mark.skipif(not psutil.LINUX, reason="Linux counts the bytes that a process reads")
def test_looking_for_new_events_or_for_the_begin_reads_no_old_ones(journal):
    """A recorder looks every five seconds, and a journal may hold a million points."""
    journal.append("begin", key="a")
    journal.events.write_bytes(journal.events.read_bytes() + b'{"do": "metrics", "time": 0}\n' * 1_000_000)
    offset = journal.events.stat().st_size
    journal.append("end")
    before = psutil.Process().io_counters().read_chars
    assert [event["do"] for event in journal.read(offset)[0]] == ["end"]
    assert journal.begin()["key"] == "a"
    assert psutil.Process().io_counters().read_chars - before < 100_000  # of 28 million
