"""Addresses of mirrors and stores as they may be shown and recorded."""

from __future__ import annotations

import re


def without_passwords(text: str) -> str:
    """`text` with `https://host` in place of `https://user:password@host`."""
    return re.sub(r"(?<=://)[^/@\s]*@", "", text)
