"""Kept weights as logged models of MLflow: `mlflow.pyfunc.load_model("models:/<id>").predict(tokens)`."""

from __future__ import annotations

import os
import platform
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.analysis.findings import Findings
from trainers import budget
from trainers.spec import TrialSpec

FILE = "model.safetensors"
LOADER = "trainers.models.saved"


def log_models(
    client: Any, experiment: str, runs: Mapping[str, str], record: str, weights: Mapping[str, str], found: Findings
) -> None:
    """Log kept weights, a model for each trial that is done. A model that is there is left alone.

    runs: trial id -> run id. weights: trial id -> path or URI of its weights. Those at a URI are not copied: the run's tag
    `emergence.weights` has their address.
    """
    steps = {run["trial"]: run["steps"] for run in found.runs if run["status"] == "done"}
    places = {trial: weights[trial.id] for trial in found.study.trials() if trial.id in steps}
    kept = {t.id: (t, Path(place)) for t, place in places.items() if "://" not in place and Path(place).exists()}
    if not kept:
        return
    there = set()
    for model in _all(client, experiment, record):
        if model.status == "READY":
            there.add(model.source_run_id)
        else:
            client.delete_logged_model(model.model_id)  # an earlier publisher did not finish it
    for name, (trial, path) in kept.items():
        if runs[name] not in there:
            _log(client, experiment, runs[name], record, trial, path, steps[name])


def _all(client: Any, experiment: str, record: str) -> list[Any]:
    found, token = [], None
    while True:
        page = client.search_logged_models([experiment], f"tags.`emergence.record` = '{record}'", page_token=token)
        found += list(page)
        if not (token := page.token):
            return found


def _log(client: Any, experiment: str, run: str, record: str, trial: TrialSpec, weights: Path, step: int) -> None:
    """Log one model. Its status becomes READY last, when it loads and its run shows it."""
    from mlflow.entities import LoggedModelOutput

    name = re.sub(r"[/:.%\"']", "-", trial.id)  # MLflow refuses these characters
    tags = {"emergence.record": record, "emergence.trial": trial.id, "emergence.fingerprint": trial.fingerprint()}
    model = client.create_logged_model(experiment, name, run, tags=tags, model_type="transformer")
    with tempfile.TemporaryDirectory() as place:
        _write(Path(place), trial, weights, model.model_id, run)
        client.log_model_artifacts(model.model_id, place)
    client.log_outputs(run, [LoggedModelOutput(model.model_id, step)])
    client.finalize_logged_model(model.model_id, "READY")


def _write(place: Path, trial: TrialSpec, weights: Path, model_id: str, run: str) -> None:
    """The files of a logged model: the weights, and MLflow's description of how to load them."""
    import numpy as np
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    try:
        os.link(weights, place / FILE)
    except OSError:  # another file system
        shutil.copyfile(weights, place / FILE)
    _, vocab_size, _, numbers = budget.shape_of(trial)
    tokens = (
        TensorSpec(np.dtype("float32"), (-1, -1, numbers.width)) if numbers else TensorSpec(np.dtype("int64"), (-1, -1))
    )
    signature = ModelSignature(Schema([tokens]), Schema([TensorSpec(np.dtype("float32"), (-1, -1, vocab_size))]))
    model = Model(run_id=run, model_id=model_id, signature=signature)
    model.add_flavor("python_function", loader_module=LOADER, data=FILE, python_version=platform.python_version())
    model.save(str(place / "MLmodel"))
