"""The project in git and DVC: its code, dvc.lock, checkouts and clones. Begin with `git` and `lockfile`."""
