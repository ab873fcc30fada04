"""Networks, the classifier around one, its directory on disk, and inference. Begin with `model`."""
