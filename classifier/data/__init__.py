"""The canonical form of a data set and the way into it: formats, splits, statistics. Begin with `dataset`."""
