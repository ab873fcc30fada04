"""How a classifier is trained. Begin with `loop`."""
