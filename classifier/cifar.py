"""CIFAR-10's Python archive, read without the module that its format is named after.

Its batches were written in that format by Python 2: a small stack language whose two dangerous words, one that looks a
name up and one that calls it, can run anything. This reader knows the words those files are made of and no others; a
name is compared with the three that NumPy's arrays need, a call builds a description, and nothing is ever looked up or
executed. Words and their arguments: CPython's Lib/pickletools.py.
"""

from __future__ import annotations

import gzip
import struct
import tarfile
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.uint8]

FOLDER = "cifar-10-batches-py"
BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
LARGEST_MEMBER = 1 << 25  # bytes; a batch of 10,000 images has 31,035,704
MEMBERS = 16  # the archive has 9

RECONSTRUCT, NDARRAY, DTYPE = b"numpy.core.multiarray _reconstruct", b"numpy ndarray", b"numpy dtype"
MARK = object()


def read_archive(name: str, content: bytes) -> dict[str, tuple[Array, Array]]:
    """Batch -> images (N, 3, 32, 32), labels (N,), in the order of BATCHES; ValueError names archive, batch and index.

    Members are found by their exact names and read in memory.
    """
    batches = {}
    try:
        with tarfile.open(fileobj=_Unpacked(fileobj=BytesIO(content)), mode="r:") as archive:
            for number, member in enumerate(archive):
                if number == MEMBERS or member.size > LARGEST_MEMBER:
                    raise ValueError(
                        f"{name}: {member.name}: more than {MEMBERS} members or {LARGEST_MEMBER:,} bytes in one"
                    )
                batch = member.name.removeprefix(f"{FOLDER}/")
                if member.name == f"{FOLDER}/{batch}" and batch in BATCHES:
                    if batch in batches or not member.isfile():
                        raise ValueError(f"{name}: {member.name} is there twice, or not a file")
                    batches[batch] = _read_batch(f"{name}: {batch}", _read_member(archive, member))
    except (tarfile.TarError, OSError, EOFError, zlib.error, RecursionError) as error:
        raise ValueError(f"{name}: not a whole gzipped tar archive: {error}") from None
    if missing := [batch for batch in BATCHES if batch not in batches]:
        raise ValueError(f"{name}: {FOLDER}/{missing[0]} is missing")
    return {batch: batches[batch] for batch in BATCHES}


class _Unpacked(gzip.GzipFile):
    """tarfile reads a header's extension whole, however long it claims to be, before it shows the member."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= LARGEST_MEMBER:
            raise tarfile.ReadError(f"it holds something of more than {LARGEST_MEMBER:,} bytes")
        return super().read(size)


def _read_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None, "isfile() was asked before"
    return file.read()


def _read_batch(where: str, content: bytes) -> tuple[Array, Array]:
    try:
        batch = _Reader(content).read()
    except (ValueError, IndexError, struct.error, TypeError) as error:
        raise ValueError(f"{where}: not a batch as CIFAR-10 has them: {error}") from None
    if not isinstance(batch, dict) or not isinstance(batch.get(b"data"), np.ndarray):
        raise ValueError(f"{where}: holds no array named data")
    images, labels = batch[b"data"], batch.get(b"labels")
    if images.ndim != 2 or images.shape[1] != 3072 or not len(images):
        raise ValueError(f"{where}: data has shape {images.shape}: allowed is (N, 3072)")
    if not isinstance(labels, list) or len(labels) != len(images):
        raise ValueError(f"{where}: labels are not a list of {len(images)} numbers")
    for index, label in enumerate(labels):
        if type(label) is not int or not 0 <= label <= 255:
            raise ValueError(f"{where}: item {index} has label {label!r:.80}")
    return images.reshape(-1, 3, 32, 32), np.array(labels, np.uint8)


class _Call:
    """A call that the file asks for, described instead of made."""

    def __init__(self, name: bytes, arguments: tuple[Any, ...]) -> None:
        if (name, arguments) not in (
            (RECONSTRUCT, (NDARRAY, (0,), b"b")),
            (DTYPE, (b"u1", 0, 1)),
        ):
            raise ValueError(f"it calls {name!r:.100} with {arguments!r:.100}")
        self.name = name


class _Reader:
    """Reads one object; ValueError at the first word that CIFAR-10's batches do not use."""

    def __init__(self, content: bytes) -> None:
        self.content, self.at = content, 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def read(self) -> Any:
        while (word := self.take(1)) != b".":
            self.obey(word)
        (result,) = self.stack
        return result

    def obey(self, word: bytes) -> None:
        push, pop = self.stack.append, self.stack.pop
        match word:
            case b"\x80":  # protocol
                self.take(1)
            case b"(":
                push(MARK)
            case b"}":
                push({})
            case b"]":
                push([])
            case b"N":
                push(None)
            case b"\x88" | b"\x89":
                push(word == b"\x88")
            case b"K":
                push(self.number("<B"))
            case b"M":
                push(self.number("<H"))
            case b"J":
                push(self.number("<i"))
            case b"\x8a":
                push(int.from_bytes(self.take(self.number("<B")), "little", signed=True))
            case b"U":
                push(self.take(self.number("<B")))
            case b"T":
                push(self.take(self.number("<i")))
            case b"q":
                self.memo[self.number("<B")] = self.stack[-1]
            case b"r":
                self.memo[self.number("<I")] = self.stack[-1]
            case b"h":
                push(self.remembered(self.number("<B")))
            case b"j":
                push(self.remembered(self.number("<I")))
            case b"\x85" | b"\x86" | b"\x87":
                size = word[0] - 0x84
                if len(self.stack) < size:
                    raise ValueError("it takes from an empty stack")
                self.stack[-size:] = [tuple(self.stack[-size:])]
            case b"t":
                push(tuple(self.since_mark()))
            case b"a":
                item = pop()
                self.top(list).append(item)
            case b"e":
                items = self.since_mark()
                self.top(list).extend(items)
            case b"s":
                value, key = pop(), pop()
                self.top(dict)[key] = value
            case b"u":
                items = self.since_mark()
                self.top(dict).update(zip(items[::2], items[1::2], strict=True))
            case b"c":
                name = self.line() + b" " + self.line()
                if name not in (RECONSTRUCT, NDARRAY, DTYPE):
                    raise ValueError(f"it names {name.decode('latin-1')!r:.100}")
                push(name)
            case b"R":
                arguments, name = pop(), pop()
                push(_Call(name, arguments))
            case b"b":
                state, call = pop(), self.top(_Call)
                if call.name == RECONSTRUCT:
                    self.replace(call, _array(state))
            case _:
                raise ValueError(f"it uses the word {word!r} at byte {self.at - 1}")

    def take(self, size: int) -> bytes:
        taken = self.content[self.at : self.at + size]
        if size < 0 or len(taken) != size:
            raise ValueError(f"it ends at byte {len(self.content)}, inside something")
        self.at += size
        return taken

    def line(self) -> bytes:
        end = self.content.index(b"\n", self.at)
        return self.take(end + 1 - self.at)[:-1]

    def number(self, layout: str) -> int:
        value: int = struct.unpack(layout, self.take(struct.calcsize(layout)))[0]
        return value

    def remembered(self, key: int) -> Any:
        if key not in self.memo:
            raise ValueError(f"it recalls {key}, which it did not store")
        return self.memo[key]

    def since_mark(self) -> list[Any]:
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is MARK:
                items = self.stack[index + 1 :]
                del self.stack[index:]
                return items
        raise ValueError("it closes what it did not open")

    def top(self, kind: type) -> Any:
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise ValueError(f"it fills something that is not a {kind.__name__}")
        return self.stack[-1]

    def replace(self, call: _Call, array: Array) -> None:
        """The array stands wherever its unfinished description stood: on the stack and in the memo."""
        self.stack[-1] = array
        for key, value in self.memo.items():
            if value is call:
                self.memo[key] = array


def _array(state: Any) -> Array:
    """NumPy's state of an array: version 1, shape, dtype, in Fortran's order or not, bytes."""
    if not (isinstance(state, tuple) and len(state) == 5):
        raise ValueError(f"an array's state is {type(state).__name__}")
    version, shape, dtype, fortran, content = state
    if version != 1 or not isinstance(dtype, _Call) or dtype.name != DTYPE or type(content) is not bytes:
        raise ValueError("an array is not one of bytes, version 1")
    return np.frombuffer(content, np.uint8).reshape(shape, order="F" if fortran else "C")
