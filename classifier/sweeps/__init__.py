"""Sweeps of experiments: a grid or a search, run by DVC, recorded as one MLflow run.

Begin with `running`; `record` decides which experiments are done.
"""
