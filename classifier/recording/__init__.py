"""Records a stage's results on disk (a journal), for upload to MLflow, without importing mlflow. Begin with `run`."""
