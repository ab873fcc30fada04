"""Evaluation of a trained classifier: metrics, tables and figures. Begin with `metrics`."""
