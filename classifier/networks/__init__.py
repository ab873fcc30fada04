"""Networks by name, the classifier that wraps one, its directory on disk, and inference. Begin with `registry`."""
