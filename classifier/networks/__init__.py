"""Networks, the classifier that wraps one, its directory on disk, and inference. Begin with `model`."""
