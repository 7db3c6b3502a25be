"""The best model size at each compute, if a study has three sizes or more."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from orchestrator.analysis.finding import Finding, claim_of, no_interval, remembered
from orchestrator.analysis.results import Results, split_of
from orchestrator.formatting import decimal, number, rounded
from orchestrator.stats import frontier
from orchestrator.stats.frontier import MIN_SIZES
from trainers import budget
from trainers.tasks import Family


def ask(results: Results) -> Iterator[Finding]:
    """The best size at each budget, and its growth with compute, for each arm; at the largest number of tasks."""
    for arm in results.study.axes.arm:
        found = isoflops(results, arm, results.study.shown_skills[0])
        if len({size for one in found.budgets for size in one.sizes}) < MIN_SIZES:
            continue
        for one in found.budgets:
            yield _best(arm, one)
        if found.exponent is not None:
            yield _growth(arm, found)


def isoflops(results: Results, arm: str, skill: str) -> frontier.Isoflops:
    """The best model size of an arm at each budget, by a parabola of loss over the sizes of all variants and budgets."""
    study, columns = results.study, []
    for condition, (of_arm, _) in study.conditions.items():
        if of_arm != arm:
            continue
        loss = results.cube("loss_nats", condition, skill, split_of(results, skill))[-1]  # (compute, replicates)
        for trunk, budgets in study.sizes(condition):
            of = loss[[results.budgets.index(c) for c in budgets]]
            compute, replicate = np.meshgrid(budgets, np.arange(loss.shape[1]), indexing="ij")
            size = np.full(of.size, float(budget.shape_of(trunk).n_parameters))
            length = _family(trunk.family).length(arm)
            own = compute.ravel() - budget.flops_at(trunk, 0)  # without the tokens of a start
            tokens = own / budget.flops_per_step(trunk) * trunk.training.batch_size * length
            columns.append((size, tokens, of.ravel(), compute.ravel(), replicate.ravel()))
    size, tokens, losses, compute, replicate = (np.concatenate(column) for column in zip(*columns, strict=True))
    return frontier.isoflop(size, tokens, losses, compute, [int(r) for r in replicate])


def _family(family: object) -> Family:
    assert isinstance(family, Family)
    return family


def _best(arm: str, one: frontier.Isoflop) -> Finding:
    """The finding on the best size at one budget."""
    at = f"at {number(one.compute)} FLOPs"

    def words(finding: Finding) -> str:
        if one.verdict == "minimum":
            per = f", {one.tokens_per_parameter:.3g} tokens per parameter" if one.tokens_per_parameter else ""
            low, high = (None if end is None else rounded(end) for end in finding.ends)
            ends = f" ({low} to {high})" if low and high else ""
            return f"the best size of {arm} {at} is {rounded(one.n_optimal or 0.0)} parameters{ends}{per}"
        if one.verdict in ("beyond", "below"):
            edge = "largest" if one.verdict == "beyond" else "smallest"
            return f"the {edge} size of {arm} is the best {at}, so the best size is not known"
        return f"the sizes of {arm} are not distinguishable {at}"

    return Finding(
        name=claim_of("best size", "loss", arm, "", one.compute),
        question="best size",
        words=words,
        condition=arm,
        compute_flops=one.compute,
        verdict=one.verdict,
        answered=one.verdict in ("minimum", "beyond", "below"),
        n=len(one.sizes),
        estimate=one.n_optimal,
        interval=remembered((one.low, one.high), no_interval),
        counted=False,
    )


def _growth(arm: str, found: frontier.Isoflops) -> Finding:
    """The finding on the exponent with which the best size grows with compute."""

    def words(one: Finding) -> str:
        ends = f" ({decimal(one.low)} to {decimal(one.high)})" if one.ends != (None, None) else ""
        return f"the best size of {arm} grows as compute to the power of {decimal(one.estimate)}{ends}"

    return Finding(
        name=claim_of("growth of the best size", "loss", arm, ""),
        question="growth of the best size",
        words=words,
        condition=arm,
        verdict="measured",
        answered=True,
        n=sum(one.verdict == "minimum" for one in found.budgets),
        estimate=found.exponent,
        interval=remembered((found.low, found.high), no_interval),
        counted=False,
    )
