"""The best model size at each compute."""

from __future__ import annotations

from typing import NamedTuple, cast

import numpy as np

from orchestrator.analysis.results import Results, split_of
from orchestrator.formatting import number
from orchestrator.stats import frontier
from orchestrator.stats.frontier import MIN_SIZES, Isoflops
from trainers import budget
from trainers.tasks import Family


class Sized(NamedTuple):
    """Trials of an arm at the largest number of tasks, over all its variants. Arrays of one length."""

    n_parameters: np.ndarray
    n_tokens: np.ndarray
    loss_nats: np.ndarray
    compute_flops: np.ndarray
    replicates: np.ndarray


def sized(results: Results, arm: str, skill: str) -> Sized:
    """The trials of an arm (`axes.arm`) by the size of their model."""
    study, parts = results.study, []
    for line, (of_arm, _) in study.lines.items():
        if of_arm != arm:
            continue
        loss = results.cube("loss_nats", line, skill, split_of(results, skill))[-1]  # (compute, replicates)
        for trunk, budgets in study.sizes(line):
            of = loss[[results.budgets.index(c) for c in budgets]]
            length = cast(Family, trunk.family).length(arm)
            compute, replicate = np.meshgrid(budgets, np.arange(loss.shape[1]), indexing="ij")
            size = np.full(of.size, float(budget.shape_of(trunk).n_parameters))
            tokens = compute.ravel() / budget.flops_per_step(trunk) * trunk.training.batch_size * length
            parts.append((size, tokens, of.ravel(), compute.ravel(), replicate.ravel()))
    return Sized(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def isoflops(results: Results, arm: str, skill: str) -> frontier.Isoflops:
    """The best model size at each compute, over all variants of an arm, at the largest number of tasks."""
    of = sized(results, arm, skill)
    replicate = [int(r) for r in of.replicates]
    return frontier.isoflop(of.n_parameters, of.n_tokens, of.loss_nats, of.compute_flops, replicate)


def frontier_words(found: Isoflops) -> str:
    """The best model size at each compute, or the reason for naming none, as sentences."""
    sizes = {size for one in found.budgets for size in one.sizes}
    if len(sizes) < MIN_SIZES:
        given = {0: "No model size", 1: "One model size", 2: "Two model sizes"}[len(sizes)]
        return f"{given} in this study: which is best for a budget takes {MIN_SIZES} or more, at two budgets, to tell."
    said = []
    for one in found.budgets:
        at = f"At {number(one.compute)} FLOPs"
        if one.n_optimal is not None and one.tokens_per_parameter is not None:
            ends = f" ({_open_range(one.low, one.high)})" if one.low is not None or one.high is not None else ""
            per = f"{one.tokens_per_parameter:.3g} tokens a parameter"
            per += f" ({_open_range(one.ratio_low, one.ratio_high)})" if one.ratio_low or one.ratio_high else ""
            said.append(f"{at} the best size is {number(one.n_optimal)} parameters{ends}, {per}.")
        elif one.verdict in ("beyond", "below"):
            edge = "largest" if one.verdict == "beyond" else "smallest"
            bound = (
                f"at least {number(one.at_least)}"
                if one.at_least
                else f"at most {number(one.at_most)}"
                if one.at_most
                else ""
            )
            said.append(
                f"{at} the {edge} size is the best: the grid does not bracket the minimum, so none is claimed"
                f"{f' but that it has {bound} parameters, if there is one minimum' if bound else ''}."
            )
        elif one.verdict == "unclear":
            said.append(f"{at} the sizes are not told apart.")
    if found.exponent is not None:
        ends = f" ({found.low:.2f} to {found.high:.2f})" if found.low is not None and found.high is not None else ""
        law = f": {found.coefficient:.3g} C^{found.exponent:.3f} parameters" if found.coefficient is not None else ""
        said.append(f"The best size grows as compute to the power of {found.exponent:.2f}{ends}{law}.")
    elif found.reason:
        said.append(f"No exponent: {found.reason}.")
    return " ".join(said)


def _open_range(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return f"at most {number(cast(float, high))}" if low is None else f"at least {number(low)}"
    return f"{number(low)} to {number(high)}"
