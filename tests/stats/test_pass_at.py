"""pass@k by counting subsets, and by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from orchestrator.stats.pass_at import pass_at_k


def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample():
    for n in range(1, 8):
        for right, k in itertools.product(range(n + 1), range(1, n + 1)):
            subsets = list(itertools.combinations(range(n), k))
            share = sum(min(subset) < right for subset in subsets) / len(subsets)
            assert pass_at_k(n, right, k) == pytest.approx(share, abs=1e-12)


def test_pass_at_k_by_hand():
    found = pass_at_k(np.array([[4, 4], [10, 5]]), np.array([[2, 0], [3, 5]]), 2)
    np.testing.assert_allclose(found, [[5 / 6, 0], [24 / 45, 1]])
    assert pass_at_k(10**6, 1, 1) == pytest.approx(1e-6, rel=1e-12)
    assert pass_at_k(2000, 1000, 1000) == 1.0
    for n, right, k in ((4, 5, 1), (4, -1, 1), (4, 2, 5), (4, 2, 0)):
        with pytest.raises(ValueError):
            pass_at_k(n, right, k)
