"""Breaks: simulated truths, hand-computed bounds, explicit refits, and degenerate input."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import special
from simulate_breaks import SCENARIOS, even, hinge, jump, logistic
from simulation import RUNS_IN_TESTS, Scenario

from orchestrator.stats import break_models
from orchestrator.stats.breaks import Break, Emergence, emergence, find_breaks, merged_scales, weigh
from trainers.streams import stream

U = np.arange(10.0)
STEP = np.where(U >= 6, 0.8, 0.2)
NAN = math.nan


def find_break(log_scale: np.ndarray, scores: np.ndarray) -> Break:
    """The verdict on one score (R, S)."""
    return find_breaks(log_scale, np.asarray(scores, dtype=float)[None])[0]


def scores(
    curve: np.ndarray, replicates: int = 5, sd: float = 0.02, offset: float = 0.0, name: str = "scores"
) -> np.ndarray:
    """(R, S) around a curve, always the same."""
    draw = stream("test breaks", name)
    shift = offset * draw.standard_normal((replicates, 1))
    return curve + shift + sd * draw.standard_normal((replicates, len(curve)))


def numbers(found: Break | Emergence) -> list[float]:
    """Every number in a result, however deep."""
    out: list[float] = []

    def visit(value: object) -> None:
        if isinstance(value, dict):
            visit(tuple(value.values()))
        elif isinstance(value, tuple):
            for part in value:
                visit(part)
        elif isinstance(value, int | float):
            out.append(value)

    visit(tuple(found))
    return out


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_a_simulated_truth(scenario: Scenario) -> None:
    outcome = scenario.play(RUNS_IN_TESTS)
    assert scenario.holds(outcome), outcome


# --- the test itself ---------------------------------------------------------------------------------------------------


def bound(top: float, df: float, *angles: float) -> float:
    return float(break_models._bound(np.array([top]), np.array([df]), np.array([angles]).reshape(1, -1))[0])


def test_for_one_break_the_bound_is_the_t_test_and_for_two_far_apart_twice_that() -> None:
    assert bound(2.776445, 4) == pytest.approx(0.05, abs=1e-6)  # Student's table
    assert bound(4.604095, 4, math.inf) == pytest.approx(0.02, abs=1e-6)


def test_for_known_noise_the_bound_is_that_of_davies_1987() -> None:
    angle = 0.3
    by_hand = 2 * special.ndtr(-2.5) + angle * math.exp(-(2.5**2) / 2) / math.pi
    assert bound(2.5, 1e9, angle) == pytest.approx(by_hand, rel=1e-4)


@pytest.mark.parametrize("df", [4, 12])
@pytest.mark.parametrize("angle", [0.1, 0.3, 0.8])
def test_the_bound_holds_and_is_nearly_reached_on_a_great_circle(df: int, angle: float) -> None:
    draw = stream("test breaks", "circle", df, str(angle))
    z, spread = draw.standard_normal((100_000, 2)), np.sqrt(draw.chisquare(df, 100_000) / df)
    tried = angle * np.arange(4)
    largest = np.abs(z @ np.stack([np.cos(tried), np.sin(tried)])).max(1) / spread
    critical = float(special.stdtrit(df, 0.99))
    share = np.mean(largest > critical)
    promised = bound(critical, df, angle, angle, angle)
    assert 0.55 * promised <= share <= promised + 0.001


def test_leaving_out_by_leverage_equals_refitting() -> None:
    y = np.sin(U) + 0.1 * U
    direct = [y[s] - np.polyval(np.polyfit(np.delete(U, s), np.delete(y, s), 2), U[s]) for s in range(10)]
    design = break_models.grid_of(tuple(U)).cubic[:3]
    assert break_models._left_out(y[None], design[None]).error[0] == pytest.approx(np.sqrt(np.mean(np.square(direct))))


def test_leaving_out_refits_the_place_of_the_jump_and_splits_the_difference_beside_it() -> None:
    grid = break_models.grid_of(tuple(U))
    unit = grid.unlined[grid.is_jump] / np.linalg.norm(grid.unlined[grid.is_jump], axis=1, keepdims=True)
    designs = np.concatenate([np.broadcast_to(grid.line, (len(unit), 2, 10)), unit[:, None]], 1)
    error = break_models._left_out(np.where(U >= 5, 1.0, 0.0)[None], designs).error[0]
    assert error == pytest.approx(
        math.sqrt(2 * 0.5**2 / 10), rel=1e-6
    )  # right but beside the jump, where it says one half


@pytest.mark.parametrize("shape", break_models.SHAPES)
@pytest.mark.parametrize("width", [2.5, 4.0, 7.0])
@pytest.mark.parametrize("centre", [-1.0, 4.3, 8.0])
def test_a_fitted_design_contains_the_curve_that_made_the_data(shape: str, width: float, centre: float) -> None:
    curve, _ = break_models._curve(shape, (U - centre) * break_models._TEN_TO_NINETY[shape] / width)
    y = (2 + 0.05 * U + curve / np.ptp(curve))[None]
    design = break_models.fitted_design(break_models.grid_of(tuple(U)), shape, y)[0]
    assert np.abs(y - y @ design.T @ design).max() < 0.006
    gram = design @ design.T
    assert np.abs(gram - np.diag(np.diag(gram))).max() < 1e-6


# --- invariances -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("curve", [STEP, U / 9, special.expit(U - 4), np.maximum(U, 5) / 9], ids=str)
def test_units_offsets_order_and_direction_change_no_verdict(curve: np.ndarray) -> None:
    Y = scores(curve)
    found = find_break(U, Y)
    for other in (
        find_break(U, 1e-6 * Y - 3e-6),
        find_break(U, -70 * Y + 1000),
        find_break(U, Y + np.arange(5)[:, None]),  # a level of its own for every replicate
        find_break(U, Y[::-1]),
        find_break(3 * U - 100, Y),
        find_break(-U, Y),
        find_break(U[::-1], Y[:, ::-1]),
    ):
        assert (other.verdict, other.why, other.kind) == (found.verdict, found.why, found.kind)
        assert other.p_straight == pytest.approx(found.p_straight, rel=1e-4)
    mirrored, moved = find_break(-U, Y), find_break(3 * U - 100, Y)
    if found.low is not None and found.high is not None:
        assert (mirrored.low, mirrored.high) == (-found.high, -found.low)
        assert (moved.low, moved.high) == (3 * found.low - 100, 3 * found.high - 100)


def test_many_scores_at_once_are_judged_as_each_alone() -> None:
    Y = np.stack([scores(curve, name=str(k)) for k, curve in enumerate([STEP, U / 9, 0 * U, special.expit(U - 4)])])
    Y[1, 2, 3], Y[2] = NAN, NAN
    together = find_breaks(U, Y)
    for found, alone in zip(together, [find_break(U, y) for y in Y], strict=True):
        assert found[:6] == alone[:6] and (found.low, found.high) == (alone.low, alone.high)
        assert numbers(found) == pytest.approx(numbers(alone), rel=1e-9)


def test_equal_scales_are_averaged_within_a_replicate() -> None:
    Y = scores(STEP)
    wobble = 0.3 * np.arange(1, 11)
    twice = find_break(np.concatenate([U, U + 1e-12]), np.concatenate([Y + wobble, Y - wobble], 1))
    assert twice.scales == tuple(U) and twice.verdict == "break"
    assert merged_scales(np.tile(U, 2), np.concatenate([Y + wobble, Y - wobble], 1)[None])[1] == pytest.approx(Y[None])


# --- cases of a study ----------------------------------------------------------------------------------------------------


def test_a_glaring_jump_is_found_with_its_place() -> None:
    found = find_break(U, scores(STEP, offset=0.2))
    assert (found.verdict, found.kind, found.low, found.high) == ("break", "jump", 5, 6)
    assert found.p_straight is not None and found.p_straight < 0.001
    assert found.p_smooth is not None and found.p_straight <= found.p_smooth < 0.05


@pytest.mark.parametrize("n_scales", [4, 5, 7])
def test_seven_scales_claim_no_break(n_scales: int) -> None:
    jumping = scores(1.0 * (n_scales <= 2 * U), 10, 0.01)[:, :n_scales]
    found = find_break(U[:n_scales], jumping)
    assert found.verdict == "undecided" and f"{n_scales} scales" in found.why


@pytest.mark.parametrize("replicates", [2, 3])
def test_three_replicates_claim_no_break(replicates: int) -> None:
    found = find_break(U, scores(STEP, replicates, 0.002))
    assert found.verdict == "undecided" and f"{replicates} replicates" in found.why


def test_neither_do_three_of_six_that_got_as_far_as_the_jump() -> None:
    Y = scores(STEP, 6)
    assert find_break(U, Y).verdict == "break"
    Y[3:, 6:] = NAN
    short = find_break(U, Y)
    assert short.verdict == "undecided" and "3 replicates" in short.why


def test_one_replicate_decides_nothing_and_four_make_a_break() -> None:
    found = find_break(U, scores(STEP, 1))
    assert found.verdict == "undecided" and found.moves
    assert find_break(U, scores(STEP, 4)).verdict == "break"


def test_one_odd_scale_is_no_break() -> None:
    found = find_break(U, scores(U / 9 + 0.5 * (U == 4)))
    assert found.verdict == "undecided"


def test_noise_alone_does_not_move() -> None:
    found = find_break(U, scores(0 * U + 0.3, sd=0.05))
    assert found.verdict == "undecided" and not found.moves and found.p_straight is None


def test_replicates_that_jump_each_at_its_own_place_leave_it_open() -> None:
    apart = (np.arange(10) >= np.array([[2], [4], [5], [7], [8]])).astype(float)
    found = [find_break(U, apart + 0.001 * stream("test breaks", k).standard_normal((5, 10))) for k in range(20)]
    assert all(b.verdict == "undecided" and b.moves for b in found)


@pytest.mark.parametrize("pattern", ["here and there", "late", "early"])
def test_missing_cells_and_large_offsets_neither_make_nor_hide_breaks(pattern: str) -> None:
    draw = stream("test breaks", pattern)
    missing = draw.random((1, 6, 10)) < 0.12
    missing = missing if pattern == "here and there" else np.zeros((1, 6, 10), bool)
    missing[:, 4:, 6:] |= pattern == "late"
    missing[:, :2, :4] |= pattern == "early"
    for truth, sd, share in ((logistic(3), 0.02, 0.0), (jump(0.5), 0.03, 0.85), (hinge, 0.002, 0.75)):
        curve, _ = truth(draw, 200, 10)
        Y = even(draw, curve, 6, np.full(200, sd)) + 0.3 * draw.standard_normal((200, 6, 1))
        found = [b.verdict == "break" for b in find_breaks(U, np.where(missing, NAN, Y))]
        assert np.mean(found) >= share if share else np.mean(found) <= 0.01


@pytest.mark.parametrize(
    "levels", [(4, 16, 32, 64, 128, 256, 1024, 4096, 65536, 1e12), (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)], ids=str
)
def test_on_uneven_grids_the_gaps_around_a_transition_define_smooth(levels: tuple[float, ...]) -> None:
    x, draw = np.log(levels), stream("test breaks", "uneven")
    gaps = np.diff(x)
    i = draw.integers(1, 8, (300, 1))
    width = 3 * np.maximum(np.maximum(gaps[i - 1], gaps[i]), gaps[i + 1])
    curve = special.expit((x - x[i] - draw.random((300, 1)) * gaps[i]) * 2 * math.log(9) / width)
    curve = (curve - curve[:, :1]) / (curve[:, -1:] - curve[:, :1])
    for sd in (0.005, 0.05):
        assert np.mean([b.verdict == "break" for b in find_breaks(x, even(draw, curve, 5, np.full(300, sd)))]) <= 0.01
    line = np.broadcast_to((x - x[0]) / (x[-1] - x[0]), (300, 10))
    assert not any(b.verdict == "break" for b in find_breaks(x, even(draw, line, 5, np.full(300, 0.02))))


# --- degenerate input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "Y", "verdict", "moves"),
    [
        (U, np.full((3, 10), NAN), "missing", True),
        (U, np.zeros((0, 10)), "missing", True),
        (np.zeros(0), np.zeros((3, 0)), "missing", True),
        (np.full(10, NAN), np.ones((3, 10)), "missing", True),
        (U, np.full((3, 10), math.inf), "missing", True),
        (U, np.full((5, 10), 0.3), "undecided", False),
        (U, np.zeros((5, 10)), "undecided", False),
        (U, np.full((1, 10), 0.7), "undecided", False),
        (U[:2], np.full((3, 2), 0.7), "undecided", False),
        (U[:1], np.ones((3, 1)), "undecided", True),
        (U[:1], np.array([[0.1], [0.9]]), "undecided", True),
        (U[:3], np.array([[0.1, 0.5, 0.9]] * 4), "undecided", True),
        (np.zeros(10), np.arange(30.0).reshape(3, 10), "undecided", True),
        (U, np.where(np.eye(10, dtype=bool)[:3], 1.0, NAN), "undecided", False),
        (U, np.where(np.eye(10, dtype=bool), U, NAN), "undecided", True),
        (U, np.arange(10.0)[None], "undecided", True),
        (U, np.tile(STEP, (5, 1)), "break", True),
        (U, np.tile(U, (5, 1)), "smooth", True),
        (U, np.tile(1.0 * (U == 9), (5, 1)), None, None),
        (U, np.tile(U % 2, (5, 1)), None, None),
    ],
)
def test_degenerate_input_has_an_explicit_verdict(
    x: np.ndarray, Y: np.ndarray, verdict: str | None, moves: bool | None
) -> None:
    found = find_break(x, Y)
    if verdict is not None:
        assert (found.verdict, found.moves) == (verdict, moves)
    assert all(math.isfinite(number) for number in numbers(found))


def test_random_input_never_fails_or_gives_nan() -> None:
    draw = stream("test breaks", "fuzz")
    makers: list[Callable[[tuple[int, ...]], np.ndarray]] = [
        draw.standard_normal,
        lambda shape: draw.integers(0, 2, shape).astype(float),
        lambda shape: 1e8 + draw.standard_normal(shape),
        lambda shape: 1e-12 * draw.standard_cauchy(shape),
        lambda shape: np.cumsum(draw.standard_normal(shape), -1),
        lambda shape: (draw.random(shape) < 0.05) * 1.0,
    ]
    for k in range(240):
        R, S = int(draw.integers(1, 7)), int(draw.integers(1, 14))
        Y = makers[k % len(makers)]((R, S))
        Y = np.where(draw.random((R, S)) < draw.choice([0, 0.1, 0.5, 0.9]), draw.choice([NAN, math.inf]), Y)
        x = draw.choice([1, 1e-3, 1e3]) * np.round(draw.uniform(0, 10, S), int(draw.integers(0, 4)))
        found = find_break(x, Y)
        assert found.verdict in ("break", "smooth", "undecided", "missing")
        assert all(math.isfinite(number) for number in numbers(found)), (x, Y, found)
        if found.verdict == "break":
            assert len(found.scales) >= 8 and found.n_replicates >= 4


@pytest.mark.parametrize(
    ("x", "Y"), [(U, np.zeros(10)), (U[:5], np.zeros((2, 10))), (np.zeros((2, 5)), np.zeros((2, 5)))]
)
def test_shapes_that_do_not_go_together_are_refused(x: np.ndarray, Y: np.ndarray) -> None:
    with pytest.raises(ValueError, match="replicates, scales"):
        find_break(x, Y)


# --- several scores ----------------------------------------------------------------------------------------------------

SMOOTH, BROKEN = find_break(U, scores(1 - U / 9)), find_break(U, scores(STEP))
FLAT, UNSURE = find_break(U, scores(0 * U)), find_break(U, scores(STEP, 3))
GONE = Break("missing", "nothing was measured")


def test_the_examples_match_their_names() -> None:
    assert [b.verdict for b in (SMOOTH, BROKEN, FLAT, UNSURE)] == ["smooth", "break", "undecided", "undecided"]
    assert not FLAT.moves and UNSURE.moves


@pytest.mark.parametrize(
    ("metrics", "verdict", "decisive"),
    [
        ({"loss": BROKEN}, "break", "loss"),
        ({"loss": BROKEN, "brier": BROKEN, "exact_match": SMOOTH}, "break", "loss"),
        ({"loss": BROKEN, "brier": UNSURE}, "break", "loss"),
        ({"loss": BROKEN, "brier": SMOOTH}, "undecided", "loss"),
        ({"loss": BROKEN, "brier": FLAT}, "undecided", "loss"),
        ({"loss": SMOOTH, "expected_accuracy": BROKEN}, "undecided", "loss"),
        ({"loss": FLAT, "brier": BROKEN}, "undecided", "loss"),
        ({"loss": GONE, "brier": BROKEN}, "break", "brier"),
        ({"loss": SMOOTH, "accuracy": SMOOTH}, "smooth", "loss"),
        ({"loss": SMOOTH, "accuracy": BROKEN}, "smooth", "loss"),
        ({"loss": SMOOTH, "exact_match": BROKEN}, "smooth", "loss"),
        ({"loss": FLAT, "accuracy": BROKEN}, "undecided", "loss"),
        ({"loss": FLAT, "accuracy": FLAT}, "undecided", "loss"),
        ({"loss": FLAT, "brier": SMOOTH}, "smooth", "brier"),
        ({"loss": FLAT, "brier": UNSURE}, "undecided", "brier"),
        ({"loss": UNSURE, "brier": BROKEN}, "undecided", "loss"),
        ({"accuracy": BROKEN}, "undecided", None),
        ({"loss": GONE, "accuracy": GONE}, "missing", None),
        ({}, "missing", None),
    ],
)
def test_the_verdict_on_a_skill_is_that_of_its_leading_continuous_score(
    metrics: dict[str, Break], verdict: str, decisive: str | None
) -> None:
    found = weigh(metrics)
    assert (found.verdict, found.decisive, found.metrics) == (verdict, decisive, metrics)
    assert (found.low, found.high) == ((5, 6) if verdict == "break" else (None, None))


def test_a_smooth_loss_is_smooth_however_abrupt_exact_match_is() -> None:
    loss = np.exp(scores(np.log(0.7 - 0.68 * U / 9), sd=0.05))
    measured = stream("test breaks", "exact").binomial(500, np.exp(-20 * loss)) / 500
    found = emergence(
        U, {"loss": loss, "brier": np.exp(-loss) ** 2, "accuracy": np.exp(-loss), "exact_match": measured}
    )
    assert (found.verdict, found.decisive) == ("smooth", "loss")
    assert set(found.metrics) == {"loss", "brier", "accuracy", "exact_match"}


def test_scores_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="different shapes"):
        emergence(U, {"loss": scores(STEP), "brier": scores(STEP, 4)})
