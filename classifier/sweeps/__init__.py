"""Many experiments: a grid or a search, run by DVC, recorded as one sweep. Begin with `running`."""
