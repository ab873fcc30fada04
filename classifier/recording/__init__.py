"""Records a stage's results in a journal for MLflow, without importing mlflow. Begin with `run`."""
