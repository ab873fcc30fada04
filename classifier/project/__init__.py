"""Foundations of every process: atomic files, checksummed JSON, locks, the project's root, start and exit of commands.

Begin with `files` and `cli`.
"""
