"""MLflow's side: journals are delivered to its store. Begin with `delivery`."""
