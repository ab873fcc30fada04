"""What every process needs: files written whole, checksummed JSON, locks, lineage, how a command starts and fails.

Begin with `files` and `cli`.
"""
