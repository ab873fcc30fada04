"""What a stage has to say to MLflow, written to a journal; nothing here imports mlflow. Begin with `run`."""
