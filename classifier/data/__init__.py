"""The canonical form of data sets, and the conversion to it: formats, splits, statistics. Begin with `dataset`."""
