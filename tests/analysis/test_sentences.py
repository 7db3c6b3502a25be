"""Every sentence that findings and answers are put into, kept beside this file: python tests/analysis/test_sentences.py --write

Each question in each of its verdicts, once, then the whole answer of some studies. Read the difference before you commit it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import numpy as np
import synthetic
import test_compare
import test_degenerate
import test_generalists
import test_speed
from synthetic import flat, step

from orchestrator.analysis import answer
from orchestrator.analysis.compare import Comparison, compare, more, sentence
from orchestrator.analysis.finding import Finding
from orchestrator.analysis.findings import Findings, find, judge
from orchestrator.study.claimable import planned

KEPT = Path(__file__).with_name("sentences.txt")
TWO: dict[str, Any] = {"arm": ("answer", "next_token"), "skills": ("recall",)}
DEEP: dict[str, Any] = {"n_tasks": tuple(2**k for k in range(1, 13)), "compute_flops": (1e11, 1.6e12, 2.56e13)}


def of_arms(first: synthetic.Truth, second: synthetic.Truth | None = None, **axes: Any) -> Findings:
    """A truth for each of two arms, or for one."""
    arms = (first, second) if second else first
    return synthetic.found(TWO | {"replicates": 8, "arm": TWO["arm"][: 1 + bool(second)]} | axes, arms)


def rising(n: np.ndarray, c: np.ndarray, r: np.ndarray) -> np.ndarray:
    return 0.2 + 0.15 * np.log2(c / 1e11) + 0.01 * (r % 3)


def sized() -> Findings:
    """Four sizes, the second the best at each of three budgets."""
    names = ["d32", "d64", "d128", "d256"]
    variants = {name: {"model": {"d_model": int(name[1:])}} for name in names}
    study = synthetic.made_up(variant=variants, compute_flops=(1e11, 4e11, 1.6e12), skills=("recall",))

    def truth(place: int) -> synthetic.Truth:
        return lambda n, c, r: 0.8 - 0.1 * (abs(place - 1) - 0.1 * np.log2(c / 1e11)) ** 2 + 0.001 * r

    return find(study, *synthetic.of_variants(study, {name: truth(i) for i, name in enumerate(names)}))


def expecting() -> Findings:
    """Expected values, met and missed, and a claim on a mean."""
    cell = {"cell": {"n_tasks": 1024}, "source": "a paper", "evidence": "C"}
    entries = [
        {"what": "ability", "value": 0.98, "lo": 0.8, "hi": 1.1} | cell,
        {"what": "accuracy", "value": 0.2, "lo": 0.1, "hi": 0.3} | cell,
        {"what": "crossing_steps", "value": 230, "lo": 100, "hi": 400} | cell,
    ]
    claim = {"what": "change_ability", "n_tasks": 64, "from_flops": 1e11, "lo": 0}
    study = synthetic.made_up(expected=entries, primary=claim, skills=("recall",))
    return find(study, *synthetic.tables(study))


def studies() -> Iterator[tuple[str, Findings]]:
    """Studies that together have every question in its verdicts."""
    yield "planted boundaries", of_arms(step(60), n_tasks=(4, 16, 64, 256), replicates=10)
    yield (
        "drifts",
        of_arms(synthetic.rising(), **DEEP),
    )
    yield "a bimodal onset", of_arms(lambda n, c, r: np.where((n > 16) & (r % 2 == 0), 0.95, 0.3), replicates=6)
    yield "compute takes the skill away", of_arms(lambda n, c, r: np.where((c > 2e11) & (n == 64), 0.3, 0.8))
    yield "nothing learned", of_arms(flat(0.02, 0.01))
    yield "more tasks, more compute", of_arms(step(10, 3e10), step(500, 3e11), **DEEP)
    yield "fewer tasks", of_arms(step(500, 3e11), step(10, 3e10), **DEEP)
    yield "one skill only", of_arms(step(10), flat(0.1, 0.01), replicates=3)
    yield "overtaken", of_arms(flat(0.5, 0.01), rising, n_tasks=(64,), compute_flops=(1e11, 2e11, 4e11, 8e11))
    yield "ahead", of_arms(flat(0.3, 0.01), flat(0.7, 0.01), n_tasks=(64,))
    yield "behind", of_arms(flat(0.7, 0.01), flat(0.3, 0.01), n_tasks=(64,))
    yield "a jump", of_arms(step(100), n_tasks=tuple(2**k for k in range(2, 12)))
    yield "sizes", sized()
    yield "expected values", expecting()
    general = test_generalists.GROWS
    for name, levels, n in (
        ("a generalist", general, 6),
        ("a weak generalist", {"generalist": [0.1, 0.2, 0.3, 0.4]}, 6),
        ("a generalist like its specialists", {"generalist": [0.55] * 4}, 3),
        ("a strong generalist", {"generalist": [0.9] * 4}, 6),
        ("a generalist twice", general, 2),
    ):
        study = test_generalists.study_of(replicates=n, primary={"what": "overtakes", "n_tasks": 20, "hi": 1.8e12})
        levels = test_generalists.LEVEL | {name: [0.55] * 4 for name in ("special_0", "special_2")} | levels
        yield name, judge(test_generalists.results_of(study, levels, spread=0.01))
    times = {("one", n, r): 10.0 for n in (4, 64) for r in (0, 1)} | {("two", 4, r): 6.0 + r for r in (0, 1)}
    yield "workers", test_speed.found_with(times)
    for name in test_degenerate.CASES:
        study, tables = test_degenerate.tables_of(name)
        yield name, find(study, *tables)


def comparisons() -> Iterator[tuple[str, Comparison]]:
    """Pairs of studies."""
    first, later = test_compare.found_of(1), {"n_tasks": (4, 16, 64, 256), "replicates": 8}
    yield "moved", compare(test_compare.found_of(1, **later), test_compare.found_of(2, centre=8, **later))
    yield "of one truth", compare(first, test_compare.found_of(3))
    yield "with itself", compare(first, first)
    yield "two replicates", compare(*(test_compare.found_of(i, centre=64 / i, replicates=2) for i in (1, 2)))
    yield "one replicate", compare(*(test_compare.found_of(i, replicates=1) for i in (1, 2)))
    other = test_compare.found_of(2, arm=("next_token",), family={"name": "cipher", "n_pairs": 12}, n_tasks=(4, 16, 8))
    yield "unlike", compare(first, other, outside=(1, 0))


OPEN = {"K_A": "crossed", "K_M": "crossed", "compute to skill": "crossed", "crossover": "crosses"}
OPEN |= {f"generalist against {state}": "crosses" for state in ("its best", "its budget")}


def hand_made(known: dict[tuple[str, str], Finding]) -> Iterator[Finding]:
    """Findings with open ends that no study above has."""
    for place in OPEN.items():
        one = replace(known[place], reach=None)
        low, high = one.interval(0.95)
        for ends in ((low, None), (None, high), (None, None)):
            yield replace(one, interval=lambda confidence, ends=ends: ends)  # type: ignore[misc]
    ratio, drift = (
        replace(known[place], reach=None) for place in (("task multiplier", "rises"), ("drift of K_A", "falls"))
    )
    yield replace(ratio, interval=lambda confidence: (ratio.low, None))
    yield replace(drift, interval=lambda confidence: (None, drift.high))


def lines() -> Iterator[str]:
    """The whole file."""
    known: dict[tuple[str, str], Finding] = {}
    answers = []
    for name, found in studies():
        for one in found.findings:
            known.setdefault((one.question, one.verdict), one)
        assert len(answer.sentence(found).split()) <= answer.MAX_WORDS, name
        answers += [f"\n{name}", f"  {answer.sentence(found)}", f"  {': '.join(answer.badge(found))}"]
        answers += [f"  + {said}" for said in answer.more(found)]
        answers += [f"  {found.primary.sentence}"] if found.primary else []
        answers += [f"  plan | {row} | {text}" for row, text in planned(found.study)]
    of_pairs = []
    for name, of in comparisons():
        for one in (of.overall, *of.findings):
            known.setdefault((f"two studies: {one.question}", one.verdict), one)
        of_pairs += [f"\ntwo studies: {name}", f"  {sentence(of)}", *(f"  + {said}" for said in more(of))]
    yield "Findings: question | verdict | sentence\n"
    for (question, verdict), one in sorted(known.items()):
        yield f"{question} | {verdict} | {one.sentence}"
    yield "\nFindings with open ends\n"
    yield from (f"{one.question} | {one.verdict} | {one.sentence}" for one in hand_made(known))
    yield "\nAnswers: sentence, badge, more, primary claim, its rows of the plan"
    yield from answers
    yield from of_pairs


def test_sentences_are_those_that_were_read() -> None:
    written = "\n".join(lines()) + "\n"
    assert written == KEPT.read_text(), "run python tests/analysis/test_sentences.py --write and read the difference"


if __name__ == "__main__":
    text = "\n".join(lines()) + "\n"
    if "--write" in sys.argv:
        KEPT.write_text(text)
    else:
        print(text)
