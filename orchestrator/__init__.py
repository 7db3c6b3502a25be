"""What a study is: reading it, planning it, running it on Ray, keeping its record, saying what came out.

Imports `trainers`, never the reverse. `ray` is imported in run.py only, `mlflow` in record.py only.
"""
