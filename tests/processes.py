"""Processes as a test that looks for some may meet them: ended meanwhile, zombies, another user's."""

from __future__ import annotations

import psutil


def forks() -> list[psutil.Process]:
    """Living forks of this process, which have its command line; tests may have left helpers of other kinds."""
    own = psutil.Process()
    living = [each for each in own.children() if each.status() != psutil.STATUS_ZOMBIE]
    return [each for each in living if words_of(each) == own.cmdline()]


def words_of(process: psutil.Process) -> list[str]:
    """Its command line; empty when it has none that can be read."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []
