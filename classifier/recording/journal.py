"""A stage's journal: the data it records for MLflow, on disk first, so that nothing is lost if MLflow is unreachable.

A journal is a folder in `.pipeline/journal/` of the project's root. It contains `events.jsonl`, append-only with one
event per line, and `files/`, copies of the files to upload. `classifier.recording.run` writes it,
`classifier.tracking.delivery` uploads and then removes it. Events, each with `do` and `time` (ms since 1970):

- `begin`: `format` (`FORMAT`; 1 if missing), `stage`, `key` (the run's, see `classifier.tracking.delivery`),
  `weights` (SHA-256 of the evaluated weights), `outputs` (for `classifier record`; a run may already have them),
  `store`, `experiment`, `name`, `user`, `params`, `tags`
- `metrics`: `seed` (of a nested run; None for the run itself), `step`, `values`
- `tags`: `tags`
- `data`: `name`, `digest`, `source`, `profile`
- `files`: `path`, both below `files/` and below the run's artifacts
- `model`: `path` below `files/`, `code` (path of its code, also below `files/`), `channels`, `size`, `class_names`
- `end`: `status`, `error`

An event with `restored: true` counts only if this journal created the run.

When the events change, increase `FORMAT` and keep reading earlier formats, because a journal may not be uploaded before
the project is updated.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any, cast

from classifier.project.files import needing_space
from classifier.project.lineage import project_root
from classifier.project.ownership import claim, release, remove

JOURNALS = Path(".pipeline/journal")  # in the project's root
FORMAT = 1  # of the events
Event = dict[str, Any]


class Journal:
    """The journal of one stage. Folder names begin with the time, so that they sort chronologically.

    The writing process owns it (`handle` is the lock). After that process has ended, the uploading process claims it.
    """

    def __init__(self, folder: Path, handle: int | None = None) -> None:
        self.folder = folder
        self.handle = handle
        self.events = folder / "events.jsonl"
        self.begun = folder / "begun"  # created by the recorder when the run exists or cannot be created now

    def append(self, do: str, **values: Any) -> None:
        """Append an event in a single write; the event `end` is also flushed to disk."""
        event = {"do": do, "time": round(time.time() * 1000), **values}
        line = f"\n{json.dumps(event)}\n".encode()  # starts on a new line, because the previous line may be truncated
        with needing_space(self.events, len(line)), self.events.open("ab", buffering=0) as file:
            if file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if do == "end":
                os.fsync(file.fileno())

    def keep(self, source: Path, path: str) -> None:
        """Copy a file, or a folder without Python's caches, to `files/<path>`."""
        target = self.folder / "files" / path
        copied = [path for path in source.rglob("*") if path.is_file()] if source.is_dir() else [source]
        with needing_space(target, sum(path.stat().st_size for path in copied)):
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copyfile(source, target)

    def keep_text(self, text: str | bytes, path: str) -> None:
        """Write `files/<path>`."""
        target, content = self.folder / "files" / path, text.encode() if isinstance(text, str) else text
        with needing_space(target, len(content)):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)

    def read(self, offset: int = 0) -> tuple[list[Event], int]:
        """Return the complete events from byte `offset` on, and the offset after them. Truncated lines are ignored."""
        try:
            with self.events.open("rb") as file:
                file.seek(offset)
                content = file.read()
        except FileNotFoundError:
            return [], offset
        whole = content[: content.rfind(b"\n") + 1]
        return [event for line in whole.splitlines() if (event := _parse(line))], offset + len(whole)

    def begin(self) -> Event | None:
        """Return the event `begin`, or None if there is none yet. Reads no further."""
        try:
            with self.events.open("rb") as file:
                lines = (line for line in file if line.endswith(b"\n"))
                return next((event for line in lines if (event := _parse(line)) and event["do"] == "begin"), None)
        except FileNotFoundError:
            return None

    def remove(self) -> None:
        remove(self.folder)
        self.release()

    def release(self) -> None:
        """Release ownership, so that another process can deliver the journal."""
        if self.handle is not None:
            release(self.handle)
            self.handle = None


def _parse(line: bytes) -> Event | None:
    try:
        return cast(Event, json.loads(line))
    except ValueError:
        return None


def new_journal(stage: str) -> Journal:
    """Create an empty journal that this process owns. It sorts last, even if the clock was set back."""
    while True:
        times = [waiting.folder.name.partition("-")[0] for waiting in waiting_journals()]
        newest = max((int(each) for each in times if each.isdecimal()), default=0)
        folder = project_root() / JOURNALS / f"{max(time.time_ns(), newest + 1):020d}-{stage}"
        if (handle := claim(folder)) is not None:
            return Journal(folder, handle)


def waiting_journals() -> list[Journal]:
    """All journals of the project that are not yet uploaded, oldest first."""
    folder = project_root() / JOURNALS
    return [Journal(path) for path in sorted(folder.glob("*-*"))]
