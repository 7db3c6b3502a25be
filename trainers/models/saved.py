"""Kept weights as a model that predicts: `load("weights/answer/n64/c1e12/r0.safetensors").predict(tokens)`.

The file's header holds the spec, so nothing else is needed. MLflow loads its logged models through `_load_pyfunc`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from trainers import budget
from trainers.models.transformer import Transformer
from trainers.spec import TrialSpec


class Predictor:
    """A trained transformer with its spec."""

    def __init__(self, spec: TrialSpec, net: Transformer) -> None:
        self.spec, self.net = spec, net

    def predict(self, tokens: Any, params: Any = None) -> np.ndarray:
        """Probabilities of the next token (B, T, vocab_size) after each position of `tokens` (B, T), whole numbers.

        Families whose tokens are numbers: tokens (B, T, width), and the predicted number (B, T, 1). `params` is unused.
        """
        given = torch.as_tensor(np.asarray(tokens))
        with torch.no_grad():
            out: torch.Tensor = self.net(given.float() if self.net.numbers else given.long())
        return (out if self.net.numbers else out.softmax(dim=-1)).numpy()

    def get_raw_model(self) -> Predictor:
        """This object, with its `spec` and its `net`, through MLflow's wrapper of the same method."""
        return self


def load(path: str | os.PathLike[str]) -> Predictor:
    """The model in a file of kept weights, on the CPU. Raises OSError, and ValueError if it is no such file."""
    with safe_open(str(path), framework="pt") as file:
        header = file.metadata() or {}
        if "trial" not in header:
            raise ValueError(f"{path}: no spec in the header; it was not written by --keep-weights")
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    spec = TrialSpec.model_validate_json(header["trial"])
    model, vocab_size, length, numbers = budget.shape_of(spec)
    net = Transformer(model, vocab_size, length, numbers)
    net.load_state_dict(weights)
    return Predictor(spec, net.eval())


def _load_pyfunc(path: str) -> Predictor:
    """MLflow's entry point. path: the file, or a folder that holds it alone."""
    return load(path if Path(path).is_file() else next(Path(path).glob("*.safetensors")))
