"""Delivery of journals to MLflow's store. Begin with `delivery`."""
