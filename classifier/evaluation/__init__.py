"""Evaluation of a trained classifier: metrics, tables, figures and the page of a run. Begin with `report`."""
