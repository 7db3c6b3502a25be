"""One trial: its tasks, its model, its FLOPs and the training loop. This package knows no Ray, no MLflow and no study.

It runs alone: `python -m trainers trial.json`. Importing the package imports no torch.
"""
