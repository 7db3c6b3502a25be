"""The verdict on the primary claim: the interval of its finding against the range that was claimed before the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast

from orchestrator import stats
from orchestrator.analysis import arms, generalists, means, onsets
from orchestrator.analysis.along import name_of as name_along
from orchestrator.analysis.finding import CONFIDENCE, Finding, claim_of, claim_of_pair
from orchestrator.analysis.results import Results
from orchestrator.stats.minimums import LEAST
from orchestrator.study.claim import Primary
from orchestrator.study.claimed import caution, claim_words, claimed_condition
from orchestrator.study.pairs import pairs_of
from orchestrator.study.schema import Study

Verdict = Literal["consistent", "inconsistent", "inconclusive", "not measured"]
"""The verdict on a primary claim, as in `PrimaryFinding.verdict`."""


@dataclass(frozen=True, kw_only=True)
class PrimaryFinding:
    """The primary claim, its finding, and the verdict."""

    study: Study
    claim: Primary
    finding: Finding
    """The finding that answers the claim's question."""
    verdict: Verdict
    """`consistent`, `inconsistent`: the whole interval lies in the claimed range, or outside. `inconclusive`: the interval does
    neither, or there is none. `not measured`: no value was recorded."""

    @property
    def claimed(self) -> str:
        """The claim as a clause."""
        return claim_words(self.study, self.claim)

    @property
    def doubt(self) -> str:
        """A warning that the study has too few replicates for the verdict; "" if there is none."""
        n, least = self.finding.n, LEAST[self.claim.what].to_settle
        if self.verdict == "inconclusive" and n < least:
            return f"{least} replicates are the least that could settle it"
        return caution(self.claim.what, n) if self.verdict in ("consistent", "inconsistent") else ""

    @property
    def sentence(self) -> str:
        """Claim, verdict, finding and doubt as text."""
        doubt = f" {self.doubt[0].upper()}{self.doubt[1:]}." if self.doubt else ""
        return f"Primary claim: {self.claimed}. {self.verdict.capitalize()}: {self.finding.sentence}.{doubt}"


def examine(results: Results, found: Mapping[str, Finding]) -> PrimaryFinding | None:
    """The verdict on the primary claim; None if none was declared. found: name -> finding, for all findings of the study."""
    claim = results.study.primary
    if claim is None:
        return None
    finding = found.get(name_of(results.study, claim) or "") or asked(results, claim)
    return PrimaryFinding(study=results.study, claim=claim, finding=finding, verdict=_verdict(claim, finding))


def _verdict(claim: Primary, one: Finding) -> Verdict:
    """The verdict on a claim from its finding. A verdict on emergence is compared as a word, any other by the 95 % interval."""
    if one.n == 0 or (one.verdict == "missing" and not claim.what.startswith("drift")):
        return "not measured"
    if claim.what == "emergence":
        if one.verdict not in ("break", "smooth"):
            return "inconclusive"
        return "consistent" if one.verdict == claim.verdict else "inconsistent"
    if one.n < 2 or one.verdict in ("missing", "incomplete"):
        return "inconclusive"  # one replicate gives a bracket and no interval
    low, high = one.interval(CONFIDENCE)
    if claim.what == "overtakes" and claim.from_flops:  # the finding counts in multiples of the specialist's compute
        low, high = low and low * claim.from_flops, high and high * claim.from_flops
    verdict: Verdict = stats.containment(low, high, claim.lo, claim.hi)
    if claim.what in ("crossover", "overtakes") and verdict == "consistent" and one.verdict != "crosses":
        # Only an overtaking that was seen confirms one. That it does not come before `lo` can be seen without it.
        return "inconclusive" if claim.hi is not None or low is None else verdict
    return verdict


def asked(results: Results, claim: Primary) -> Finding:
    """The finding of a claim that no question of QUESTIONS asks: a mean, a change, a crossover in another skill."""
    study, condition = results.study, claimed_condition(results.study, claim)
    skill, flops = claim.skill or study.shown_skills[0], claim.compute_flops or study.budgets[-1]
    n_tasks = cast(int, claim.n_tasks)
    if claim.what == "crossover":
        sides = [arms.Side(results, name, name) for name in (condition, cast(str, claim.against))]
        budgets = study.budgets_of(*(side.condition for side in sides))
        return arms.crossover(sides[0], sides[1], skill, n_tasks, budgets, in_this_order=True)
    if claim.what == "compute_to_skill":
        return onsets.onset(results, condition, skill, n_tasks)
    if claim.what in ("accuracy", "ability", "memory", "change_accuracy", "change_ability"):
        measure = claim.what.removeprefix("change_")
        of = "" if measure == "memory" else skill
        return means.mean(results, measure, condition, of, n_tasks, flops, claim.from_flops)
    return nothing(claim, condition)


def nothing(claim: Primary, condition: str) -> Finding:
    """A finding without any value, for a claim about cells that were not recorded."""
    return Finding(
        name="",
        question=claim.what,
        words=lambda one: "nothing was recorded that defines it",
        condition=condition,
        verdict="missing",
        n=0,
        counted=False,
    )


def name_of(study: Study, primary: Primary | None) -> str | None:
    """Name of the finding that a claim is about, as `claim_of` gives it; None for claims that only `asked` answers."""
    if primary is None:
        return None
    condition = claimed_condition(study, primary)
    skill, flops = primary.skill or study.shown_skills[0], primary.compute_flops or study.budgets[-1]
    kind, _, measure = primary.what.partition("_")
    if kind == "along":
        return name_along(measure, condition, skill, cast(int, primary.n_tasks), flops)
    if kind in ("k", "drift"):
        return claim_of(kind, measure, condition, skill if measure == "ability" else "", flops if kind == "k" else "")
    if primary.what == "compute_to_skill":
        return claim_of("to", "skill", condition, skill, float(cast(int, primary.n_tasks)))
    if primary.what == "crossover":
        return claim_of_pair(
            "crossover", cast(str, primary.against), condition, skill, float(cast(int, primary.n_tasks))
        )
    if primary.what == "overtakes":
        domains = [pair.domain for pair in pairs_of(study) if pair.generalist == condition]
        domain = primary.skill or (generalists.ALL if len(domains) > 1 else "".join(domains))
        against: generalists.Against = "its budget" if primary.from_flops else "its best"
        return generalists.name_of(condition, domain, cast(int, primary.n_tasks), against, primary.from_flops)
    if primary.what == "emergence":
        along = "n_tasks" if primary.n_tasks is None else "compute_flops"
        fixed = primary.compute_flops if primary.n_tasks is None else primary.n_tasks
        return claim_of("break", along, condition, skill, float(cast(float, fixed)))
    return None
