"""Processes as a test that looks for some may meet them: ended meanwhile, zombies, another user's."""

from __future__ import annotations

import psutil


def words_of(process: psutil.Process) -> list[str]:
    """Its command line; empty when it has none that can be read."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []
