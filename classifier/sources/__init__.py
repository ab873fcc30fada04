"""Sources of images and their download. Begin with `catalog`, the known data sets."""
