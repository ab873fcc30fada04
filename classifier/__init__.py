"""The library under the stages: params, datasets, model, training engine, evaluation, tracking."""
