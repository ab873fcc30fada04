"""Where images come from, and their transfer. Begin with `catalog`, the known data sets."""
