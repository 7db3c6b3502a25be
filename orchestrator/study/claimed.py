"""The primary claim in words, and the least replicates for a verdict on it; for `emergence plan` and the report."""

from __future__ import annotations

from orchestrator.formatting import number
from orchestrator.stats.minimums import LEAST
from orchestrator.study.claim import Primary
from orchestrator.study.schema import Study

_QUANTITIES = {
    "k_ability": "the number of tasks at which {skill} appears, at {flops} FLOPs,",
    "k_memory": "the number of tasks at which memory of the training tasks{of_arm} ends, at {flops} FLOPs,",
    "along_ability": "the {axis} at which ability in {skill} passes one half, at {n} tasks and {flops} FLOPs,",
    "along_long_answers": "the {axis} at which half of the answers in {skill} are long, at {n} tasks and {flops} FLOPs,",
    "drift_ability": "the drift of K_A of {skill}, in doublings per doubling of compute,",
    "drift_memory": "the drift of K_M{of_arm}, in doublings per doubling of compute,",
    "compute_to_skill": "the compute at which {skill} appears, at {n} tasks,",
    "crossover": "the compute at which {against} overtakes {arm} in {bare_skill}, at {n} tasks,",
    "overtakes": "the compute at which {arm} overtakes {rivals}, with {n} tasks a domain,",
    "accuracy": "the accuracy of {skill} at {n} tasks and {flops} FLOPs",
    "ability": "the ability of {skill} at {n} tasks and {flops} FLOPs",
    "memory": "the memory of the training tasks{of_arm} at {n} tasks and {flops} FLOPs",
    "change_accuracy": "the change in accuracy of {skill} at {n} tasks from {from_flops} to {flops} FLOPs",
    "change_ability": "the change in ability of {skill} at {n} tasks from {from_flops} to {flops} FLOPs",
}
"""`Primary.what` -> the quantity in words, with places to fill in."""
_IN_FLOPS = ("compute_to_skill", "crossover", "overtakes")
"""Values of `Primary.what` whose range is in FLOPs."""


def claim_words(study: Study, claim: Primary) -> str:
    """The claim as a clause: quantity, place and range. It names its condition if the study has several."""
    arm, skill = claimed_condition(study, claim), claim.skill or study.shown_skills[0]
    of_arm = f" ({arm})" if len(study.series if is_along(claim) else study.conditions) > 1 else ""
    names = {
        "skill": skill + of_arm,
        "bare_skill": skill,
        "of_arm": of_arm,
        "arm": arm,
        "axis": study.axis,
        "against": claim.against,
        "rivals": _rivals(claim),
        "flops": number(claim.compute_flops or study.budgets[-1]),
        "from_flops": number(claim.from_flops) if claim.from_flops else "",
        "n": number(claim.n_tasks) if claim.n_tasks else "",
    }
    if claim.what == "emergence":
        along = f"along compute at {names['n']} tasks" if claim.n_tasks else f"along tasks at {names['flops']} FLOPs"
        return f"the emergence of {names['skill']} {along} is a {claim.verdict}".replace("a smooth", "smooth")
    if claim.lo is not None and claim.hi is not None:
        asked = f"{_exactly(claim.lo)} to {_exactly(claim.hi)}"
    else:
        asked = f"at least {_exactly(claim.lo)}" if claim.lo is not None else f"at most {_exactly(claim.hi or 0.0)}"
    unit = " FLOPs" if claim.what in _IN_FLOPS else ""
    return f"{_QUANTITIES[claim.what].format(**names)} is {asked}{unit}"


def claimed_condition(study: Study, claim: Primary) -> str:
    """Name of the condition that a claim is about, or of its series (`is_along`): the given one, else the first of the study."""
    return claim.arm or next(iter(study.series if is_along(claim) else study.conditions))


def is_along(claim: Primary) -> bool:
    """Whether a claim is about a boundary along a family parameter, and so about a series of conditions (`Study.series`)."""
    return claim.what.startswith("along")


def _rivals(claim: Primary) -> str:
    """The specialist side of a claim `overtakes` in words."""
    whose = f"the specialist of {claim.skill}" if claim.skill else "its mean specialist"
    return f"{whose} with {number(claim.from_flops)} FLOPs" if claim.from_flops else f"{whose} at its best"


def _exactly(value: float) -> str:
    """An end of the claimed range in words, as the study gives it."""
    return number(value) if abs(value) >= 1000 else f"{value:g}".replace("-", "\u2212")


def caution(what: str, n: int) -> str:
    """A warning that n replicates of a bimodal skill can agree by chance; "" if n is enough, or below 2.

    `what` is the claim's quantity, as in `Primary.what`.
    """
    least = LEAST.get(what)
    if least is None or not 1 < n < least.to_trust:
        return ""
    return f"where only some replicates get the skill, {n} can agree by chance; {least.to_trust} seldom do"
