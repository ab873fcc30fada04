"""What git and DVC know of the project: its code, dvc.lock, checkouts and clones. Begin with `git` and `lockfile`."""
