"""What git and DVC know of the project: commits, dvc.lock, worktrees and clones. Begin with `lockfile`."""
