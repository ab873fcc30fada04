"""Sweeps: experiments over a grid or a search, run by DVC and recorded as one MLflow run. Begin with `running`; `record` decides what is done."""
