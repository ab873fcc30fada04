"""Makes the kernel refuse system calls of this process and its children, with real errors.

Uses an unprivileged seccomp filter, on Linux with x86-64 or ARM only (`can_refuse`).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue

CREATE = os.O_CREAT
# Name -> (number on x86-64, number on ARM or None, condition on an argument: index, operator, value).
ONLY_FILES = (0, ">", 2)  # not standard output and error, which report the error
CALLS: dict[str, tuple[int | None, int | None, tuple[int, str, int] | None]] = {
    "read": (0, 63, ONLY_FILES),
    "getdents64": (217, 61, None),  # to list a folder
    "write": (1, 64, ONLY_FILES),
    "pwrite64": (18, 68, ONLY_FILES),
    "writev": (20, 66, ONLY_FILES),
    "sendfile": (40, 71, None),
    "copy_file_range": (326, 285, None),
    "fsync": (74, 82, None),
    "open": (257, 56, (2, "&", CREATE)),  # openat, to create a file
    "rename": (82, None, None),
    "renameat": (264, 38, None),
    "renameat2": (316, 276, None),
    "unlinkat": (263, 35, None),
    "mkdir": (83, None, None),
    "mkdirat": (258, 34, None),
}
WRITING = ("write", "pwrite64", "writev", "sendfile", "copy_file_range")
RENAMING = ("rename", "renameat", "renameat2")
CREATING = ("open", "mkdir", "mkdirat")
MACHINES = {"x86_64": 0, "aarch64": 1}

KILL, ALLOW, ERROR, ASK = 0x80000000, 0x7FFF0000, 0x00050000, 0x7FC00000  # return values of a filter; linux/seccomp.h
EVERY_THREAD, LISTENER = 1, 8  # flags of its installation
RECEIVE, SEND, GO_ON = 0xC0502100, 0xC0182101, 1  # ioctls of the listener, and the flag that lets a call pass
LOAD, EQUAL, GREATER, ANY, RETURN = 0x20, 0x15, 0x25, 0x45, 0x06  # BPF instructions; linux/bpf_common.h


def can_refuse() -> bool:
    return sys.platform == "linux" and platform.machine() in MACHINES


def refuse(*names: str, error: int | None) -> None:
    """From now on these calls of any thread fail with `error` (errno), or kill the process if it is None."""
    answer = KILL if error is None else ERROR | error
    machine = MACHINES[platform.machine()]
    program = []
    for name in names:
        *numbers, argument = CALLS[name]
        if (number := numbers[machine]) is None:
            continue
        program += [(LOAD, 0, 0, 0)]
        if argument is None:
            program += [(EQUAL, 0, 1, number), (RETURN, 0, 0, answer)]
        else:
            index, operator, value = argument
            test = {">": GREATER, "&": ANY}[operator]
            program += [(EQUAL, 0, 3, number), (LOAD, 0, 0, 16 + 8 * index), (test, 0, 1, value)]
            program += [(RETURN, 0, 0, answer)]
    _install([*program, (RETURN, 0, 0, ALLOW)])


def ask(answer: Callable[[str, list[str]], int]) -> None:
    """From now on `answer` decides about flushes and renames of this thread and those that it starts.

    `answer` runs in its own thread, gets the call's name and paths, and returns the errno to refuse it with, or 0.
    """
    machine = MACHINES[platform.machine()]
    names = {number: name for name in ("fsync", *RENAMING) if (number := CALLS[name][machine]) is not None}
    listener: SimpleQueue[int] = SimpleQueue()

    def paths_of(name: str, values: list[int]) -> list[str]:
        if name == "fsync":
            return [str(Path(f"/proc/self/fd/{values[0]}").resolve())]
        first, second = (0, 1) if name == "rename" else (1, 3)
        return [os.fsdecode(ctypes.string_at(values[index])) for index in (first, second)]

    def listen() -> None:
        handle = listener.get()
        while True:
            received = bytearray(80)
            fcntl.ioctl(handle, RECEIVE, received)
            number, _, _, call, _, _, *values = struct.unpack("QIIiIQ6Q", received)
            error = answer(names[call], paths_of(names[call], values))
            fcntl.ioctl(handle, SEND, struct.pack("QqiI", number, 0, -error, 0 if error else GO_ON))

    threading.Thread(target=listen, daemon=True).start()  # before the filter, which must not apply to it
    asked = [word for number in names for word in ((EQUAL, 0, 1, number), (RETURN, 0, 0, ASK))]
    listener.put(_install([(LOAD, 0, 0, 0), *asked, (RETURN, 0, 0, ALLOW)], LISTENER))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("words", ctypes.c_void_p))


def _install(program: list[tuple[int, int, int, int]], flags: int = EVERY_THREAD) -> int:
    words = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *word) for word in program))
    libc = ctypes.CDLL(None, use_errno=True)
    filtered = _Program(len(program), ctypes.addressof(words))
    no_new_privileges, seccomp, set_filter = 38, (317, 277)[MACHINES[platform.machine()]], 1
    libc.prctl(no_new_privileges, 1, 0, 0, 0)
    if (handle := libc.syscall(seccomp, set_filter, flags, ctypes.byref(filtered))) < 0:
        raise OSError(ctypes.get_errno(), "no filter of system calls")
    return int(handle)


def small_disk(folder: str, size: int) -> None:
    """Mount a file system of `size` bytes in a mount namespace of this process. Raises OSError if not permitted.

    Without root, it also creates a user namespace.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    user, mounts = 0x10000000, 0x00020000  # CLONE_NEWUSER, CLONE_NEWNS
    if libc.unshare(mounts) and libc.unshare(user | mounts):
        raise OSError(ctypes.get_errno(), "no name space of mounts")
    private = 0x4000 | 0x40000  # MS_REC | MS_PRIVATE: the mount is invisible to other processes
    if libc.mount(b"none", b"/", None, private, None):
        raise OSError(ctypes.get_errno(), "no private mounts")
    if libc.mount(b"small", folder.encode(), b"tmpfs", 0, f"size={size},mode=0777".encode()):
        raise OSError(ctypes.get_errno(), "no small file system")
