"""Upload of recorded data (journals) to MLflow's store. Begin with `delivery`."""
