"""How good a trained classifier is, as numbers, tables and pictures. Begin with `metrics`."""
