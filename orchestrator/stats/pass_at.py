"""pass@k: the chance that one of k samples is right."""

from __future__ import annotations

import numpy as np


def pass_at_k(n: np.ndarray | int, n_right: np.ndarray | int, k: int) -> np.ndarray:
    """The unbiased estimate of the chance that one of k samples is right, from n samples of which `n_right` are (any shape).

    It is 1 - C(n - n_right, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374), as a sum of logarithms: no factorial overflows,
    and small chances keep their digits. Raises ValueError for k outside 1 ... n and n_right outside 0 ... n.
    """
    n, n_right = np.broadcast_arrays(np.asarray(n, dtype=np.float64), np.asarray(n_right, dtype=np.float64))
    if k < 1 or (n < k).any():
        raise ValueError(f"k {k} is outside 1 ... {n.min(initial=np.inf):g}, the samples of a prompt")
    if (n_right < 0).any() or (n_right > n).any():
        raise ValueError("n_right is outside 0 ... n: a count of right samples among n")
    left = n[..., None] - np.arange(k)  # samples left after each draw
    with np.errstate(divide="ignore"):  # log 0 where some draw must be right
        return -np.expm1(np.log1p(-np.minimum(n_right[..., None] / left, 1)).sum(-1))
