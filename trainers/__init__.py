"""What one trial is: tasks, model, FLOPs, one training loop. Knows no Ray, no MLflow, no study.

Runs alone: `python -m trainers trial.json`. Importing the package imports no torch.
"""
