"""Arm `reward`: the estimators against full enumeration, sampling against training, resuming to the bit, refusals."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from steps import Counter

from trainers import budget, checkpoint
from trainers.engine.engine import Engine
from trainers.engine.rows import Sampled
from trainers.fit.place import Place
from trainers.objectives.reward import RewardOnly, _rows, answer_weights
from trainers.spec import Reward, TrunkSpec
from trainers.tasks import FAMILIES
from trainers.tasks.base import lacking
from trainers.tasks.probes import Batch, Questions
from trainers.train import run_trunk

Events = list[dict[str, Any]]
SMALL = {"n_layers": 1, "d_model": 16, "n_heads": 2, "d_mlp": 24}


def trunk_of(algorithm: str = "leave_one_out", group_size: int = 4, **changes: Any) -> TrunkSpec:
    """A trunk of compose: letters of an alphabet of four, two slots. A random answer is right once in some twenty."""
    record: dict[str, Any] = {
        "family": {"name": "compose", "n_slots": 2, "n_functions": 4, "n_letters": 4},
        "arm": "reward",
        "n_tasks": 8,
        "replicate": 0,
        "model": SMALL,
        "training": {"batch_size": 16, "learning_rate": 0.01},
        "evaluation": {"first_flops": 1e7, "n_sequences": 6},
        "reward": {"algorithm": algorithm, "group_size": group_size},
    }
    return TrunkSpec.model_validate(record | changes)


def text_trunk(**changes: Any) -> TrunkSpec:
    """A trunk of rewriting: its answers end when the model likes, and a mark is forbidden."""
    family = {"name": "rewrite", "n_letters": 3, "n_string": 4, "lengths": (1, 2)}
    return trunk_of(family=family, **changes)


# The estimators, by full enumeration -----------------------------------------------------------------------------


ANSWERS = [(0, 0), (0, 1), (1, 0), (1, 1)]
"""All answers of a toy that writes two tokens of an alphabet of two."""


class Toy(torch.nn.Module):
    """Logits of the first token, and of the second after each first one: three coins."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(torch.tensor([[0.3, -0.4], [0.9, 0.1], [-0.2, 0.6]], dtype=torch.float64))

    def forward(self, tokens: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        """The prompt is token 2. After it, the row of a position is its token."""
        row = torch.where(tokens == 2, 0, tokens + 1)
        return self.logits[row][at]  # (n, 2)

    def chances(self) -> torch.Tensor:
        logs = self.logits.log_softmax(1)
        return torch.stack([logs[0, a] + logs[1 + a, b] for a, b in ANSWERS]).exp()  # (4,)


def expected_gradient(algorithm: str, reward: tuple[int, int, int, int], size: int) -> torch.Tensor:
    """Minus the gradient of the objective's loss, times the tokens of an answer: its mean over all groups of `size` answers."""
    toy, total = Toy(), torch.zeros(3, 2, dtype=torch.float64)
    objective: Any = RewardOnly.__new__(RewardOnly)
    objective.n_new, objective.forbidden, objective.settings = 2, [], SimpleNamespace(temperature=1.0)
    chances = toy.chances().detach()
    for group in itertools.product(range(4), repeat=size):
        right = np.array([[bool(reward[i]) for i in group]])
        weights = answer_weights(algorithm, right, np.full((1, size), 2), 2)
        given = [ANSWERS[i] for i in group]
        asked: Any = SimpleNamespace(prompts=[np.array([2])] * size, end=-1)
        sampled = Sampled(np.array(given), np.full(size, 2), np.zeros((size, 2)), np.zeros((size, 4), bool))
        batch = _rows(asked, sampled, weights.ravel(), 3)
        loss = objective.loss(toy, tensors(batch))
        (gradient,) = torch.autograd.grad(loss, toy.logits)
        total -= 2 * gradient * chances[list(group)].prod()
    return total


def tensors(batch: Batch) -> Any:
    assert batch.weights is not None
    parts = {"tokens": batch.tokens, "loss_mask": batch.loss_mask, "weights": batch.weights.astype(np.float64)}
    return SimpleNamespace(**{name: torch.from_numpy(part) for name, part in parts.items()})


def true_gradient(reward: tuple[int, int, int, int]) -> torch.Tensor:
    toy = Toy()
    (gradient,) = torch.autograd.grad((toy.chances() * torch.tensor(reward)).sum(), toy.logits)
    return gradient


REWARD = (0, 1, 0, 1)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_leave_one_out_is_the_gradient_of_the_expected_reward(size: int) -> None:
    found, true = expected_gradient("leave_one_out", REWARD, size), true_gradient(REWARD)
    assert true.abs().max() > 0.05
    assert torch.allclose(found, true, atol=1e-6)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_grpo_has_the_bias_that_is_predicted_for_it(size: int) -> None:
    """With k right answers of G, deviation s(k) and chance p, the mean is k/G (1 - k/G) / s(k) / (p (1 - p)) true gradients."""
    p = float((Toy().chances().detach() * torch.tensor(REWARD)).sum())
    factor = 0.0
    for k in range(1, size):
        share = k / size
        deviation = np.sqrt(share * (1 - share) * size / (size - 1))
        factor += math.comb(size, k) * p**k * (1 - p) ** (size - k) * share * (1 - share) / deviation / (p * (1 - p))
    assert abs(factor - 1) > 0.1
    assert torch.allclose(expected_gradient("grpo", REWARD, size), factor * true_gradient(REWARD), atol=1e-6)


def test_grpo_weights_short_answers_more() -> None:
    found = answer_weights("grpo", np.array([[True, False]]), np.array([[1, 4]]), n_new=4)
    assert np.allclose(found, np.array([[4, -1]]) / np.sqrt(2))


@pytest.mark.parametrize("size", [2, 4])
def test_the_own_mean_shrinks_the_gradient_by_one_in_the_size_of_a_group(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def own_mean(algorithm: str, right: np.ndarray, n_tokens: np.ndarray, n_new: int) -> np.ndarray:
        return right - right.mean(axis=1, keepdims=True)

    monkeypatch.setitem(globals(), "answer_weights", own_mean)
    assert torch.allclose(expected_gradient("", REWARD, size), (1 - 1 / size) * true_gradient(REWARD), atol=1e-6)


def test_rejection_is_the_log_likelihood_of_right_answers_alone() -> None:
    right, n_tokens = np.array([[True, False], [True, True]]), np.array([[2, 5], [3, 4]])
    found = answer_weights("rejection", right, n_tokens, n_new=5) / (right.size * 5)
    assert np.allclose(found, [[1 / 9, 0], [1 / 9, 1 / 9]])
    assert np.allclose(answer_weights("star", right, n_tokens, 5), found * 20)
    assert (answer_weights("rejection", right & False, n_tokens, 5) == 0).all()


@pytest.mark.parametrize("algorithm", ["leave_one_out", "grpo"])
def test_groups_of_equal_rewards_teach_nothing(algorithm: str) -> None:
    right = np.array([[True, True, True], [False, False, False]])
    assert (answer_weights(algorithm, right, np.array([[1, 2, 3], [3, 2, 1]]), 3) == 0).all()


def test_a_constant_reward_moves_no_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    trunk, place = trunk_of(), Place()
    engine = Engine(trunk, place)
    objective = RewardOnly(trunk)
    objective.write = engine.write
    monkeypatch.setattr(Questions, "judged", lambda self, w, ended, _: ([""] * len(w), ended, np.ones(len(w), bool)))
    before = engine.snapshot(moments=False)
    for step in range(3):
        engine.step(objective, step, 0.01)
    after = engine.snapshot(moments=False)
    engine.destroy()
    assert all(torch.equal(before[name], after[name]) for name in before)


# Sampling and training are one model -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trunk", [trunk_of(), text_trunk(reward={"group_size": 2, "temperature": 0.7})], ids=["compose", "text"]
)
def test_sampled_tokens_have_the_same_log_probability_in_training(trunk: TrunkSpec) -> None:
    engine = Engine(trunk, Place(micro_batch=8))
    objective = RewardOnly(trunk)
    kept: list[Sampled] = []

    def write(*given: Any) -> Sampled:
        kept.append(engine.write(*given))
        return kept[-1]

    objective.write = write
    batch = objective.batch(0)
    (sampled,) = kept
    mask = torch.from_numpy(batch.loss_mask)
    assert mask.sum() == sampled.n_tokens.sum() > 0
    one = torch.ones(mask.shape)
    rows = SimpleNamespace(tokens=torch.from_numpy(batch.tokens), loss_mask=mask, weights=one.requires_grad_())
    (by_token,) = torch.autograd.grad(objective.loss(engine.model, rows), rows.weights)  # type: ignore[arg-type]
    logs = -by_token[mask].detach().numpy() * len(batch.tokens) * objective.n_new
    drawn = np.concatenate([row[:k] for row, k in zip(sampled.log_probs, sampled.n_tokens, strict=True)])
    engine.destroy()
    assert drawn.min() < -0.1
    assert np.abs(logs - drawn).max() <= 1e-5


def test_samples_are_charged_with_the_longest_answer_and_a_cache() -> None:
    trunk = trunk_of(group_size=8)
    model = trunk.model
    block = 4 * model.d_model**2 + 2 * model.d_model * model.d_mlp
    out = model.d_model * trunk.family.vocab_size  # type: ignore[attr-defined]
    # A prompt of 4 tokens; its answers have 2, of which the second reads one token, which sees 5.
    prompt = 4 * block + 2 * 4 * 4 * model.d_model + out
    token = block + out + 2 * 5 * model.d_model
    assert budget.sampling_flops(trunk) == 2 * 2 * (prompt + 8 * token)
    supervised = TrunkSpec.model_validate(trunk.model_dump() | {"arm": "steps", "reward": None})
    assert budget.flops_per_step(trunk) == budget.flops_per_step(supervised) + budget.sampling_flops(trunk)


def test_what_was_written_costs_what_its_own_tokens_do() -> None:
    shape = budget.shape_of(text_trunk())
    each = [shape.sampling_flops(9, k, 1) for k in (1, 5, 7)]
    twice = shape.written_flops(9, 1, np.array([1, 5, 7]))
    assert twice == sum(each) - 2 * each[0] and each[1] == shape.written_flops(9, 1, np.array([5]))


@pytest.mark.parametrize(("n_letters", "share"), [(2, 0.3), (4, 0.17), (8, 0.1)])
def test_the_answers_that_star_keeps_have_the_odds_of_long_ones_times_the_alphabet(
    n_letters: int, share: float
) -> None:
    """The start model writes all prefix sums with the chance p, else it guesses: what is kept has A p / (1 + (A - 1) p)."""
    family = {"name": "worked_parity", "n_letters": n_letters, "n_positions": 4}
    trunk = trunk_of(
        "star",
        10,
        family=family,
        n_tasks=8,
        training={"batch_size": 20_000},
        start={"trial": "a/b", "fingerprint": "f", "flops": 1},
    )
    objective, draw = RewardOnly(trunk), np.random.default_rng(0)

    def write(asked: Questions, temperature: float, purpose: Any, samples: np.ndarray, frozen: bool) -> Sampled:
        n, d = len(asked.prompts), 4
        sums = np.array([prompt[:d] for prompt in asked.prompts]).cumsum(axis=1) % n_letters
        long, guess = draw.random(n) < share, draw.integers(0, n_letters, n)
        tokens = np.where(long[:, None], sums, guess[:, None])
        right = long | (guess == sums[:, -1])
        assert frozen
        verdicts = np.stack([np.ones(n, bool), np.ones(n, bool), right, right], axis=1)
        return Sampled(np.pad(tokens, ((0, 0), (0, 1))), np.where(long, d + 1, 2), np.zeros((n, d + 1)), verdicts)

    objective.write = write  # type: ignore[assignment]
    batch = objective.batch(0)
    assert batch.weights is not None
    weights, n_tokens = batch.weights.max(axis=1), batch.loss_mask.sum(axis=1)
    kept = weights[n_tokens > 2].sum() / weights.sum()
    assert kept == pytest.approx(n_letters * share / (1 + (n_letters - 1) * share), abs=0.015)
    assert len(set(weights.tolist())) == 2 and weights.min() == 0  # every right answer counts alike


# Runs ------------------------------------------------------------------------------------------------------------


def run(trunk: TrunkSpec, folder: Path | None = None, stop: Counter | None = None, **place: Any) -> Events:
    events: Events = []
    where = Place(checkpoint_folder=str(folder) if folder else None, checkpoint_every_seconds=1e9, **place)
    run_trunk(
        trunk, [float(n * budget.flops_per_step(trunk)) for n in (50, 60)], where, events.extend, stop or Counter()
    )
    return events


def results(events: Events) -> dict[str, str]:
    """Results of each evaluation with its samples and transcripts, by key."""
    keep = ("rows", "sampled", "train_loss_nats", "flops")
    return {e["key"]: json.dumps([e.get(k) for k in keep]) for e in events if e["kind"] == "evaluation"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Events, checkpoint.Tensors]:
    folder = tmp_path_factory.mktemp("whole")
    events = run(text_trunk(), folder)
    found = checkpoint.load(folder, text_trunk().fingerprint())
    assert found is not None
    return events, found[1]["live"]


@pytest.mark.parametrize("at", [1, 33, 47, 55])
def test_a_stopped_run_goes_on_to_the_bit_with_its_transcripts(
    at: int, whole: tuple[Events, checkpoint.Tensors], tmp_path: Path
) -> None:
    trunk = text_trunk()
    run(trunk, tmp_path, Counter(at))
    events = run(trunk, tmp_path)
    assert results(events) == results(whole[0])
    found = checkpoint.load(tmp_path, trunk.fingerprint())
    assert found is not None
    live = found[1]["live"]
    assert live.keys() == whole[1].keys()
    assert all(torch.equal(live[name], whole[1][name]) for name in live)


def test_an_evaluation_has_the_samples_since_the_last_one(whole: tuple[Events, checkpoint.Tensors]) -> None:
    trunk = text_trunk()
    on_trunk = [e for e in whole[0] if e["kind"] == "evaluation" and e["on"] == "trunk" and e.get("grid")]
    steps = [0, *(e["step"] for e in on_trunk)]
    counts = [e["sampled"]["sums"]["samples"] for e in on_trunk]
    assert counts == [16 * (b - a) for a, b in itertools.pairwise(steps)]
    sums = on_trunk[-1]["sampled"]["sums"]
    assert sums["samples"] >= sums["ended"] >= sums["answered"] >= sums["right"] >= sums["sound"]
    assert sums["groups"] == sums["samples"] / 4 >= sums["groups_right"] + sums["groups_wrong"]
    assert len(on_trunk[-1]["sampled"]["transcripts"]) == trunk.training.batch_size // 4
    assert all(e["train_loss_nats"] is None for e in on_trunk)


def test_a_reward_alone_teaches_a_skill_that_random_answers_touch() -> None:
    family = {"name": "compose", "n_slots": 2, "n_functions": 2, "n_letters": 4}
    changes = {"family": family, "n_tasks": 3, "training": {"batch_size": 64, "learning_rate": 0.01}}
    trunk = trunk_of(group_size=16, **changes)
    events: Events = []
    run_trunk(trunk, [float(100 * budget.flops_per_step(trunk))], Place(), events.extend)
    shares = [s["right"] / s["samples"] for e in events if (s := e.get("sampled", {}).get("sums"))]
    assert shares[0] < 0.1 < 0.3 < shares[-1]


@pytest.fixture(scope="module")
def from_a_start(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrunkSpec, Path]:
    """A trunk that begins with a donor's weights, and their folder."""
    folder = tmp_path_factory.mktemp("starts")
    donor = trunk_of(arm="steps", reward=None, training={"batch_size": 32, "learning_rate": 0.01})
    flops = 80 * budget.flops_per_step(donor)
    place = Place(starts_folder=str(folder), starts=(float(flops),))
    run_trunk(donor, [float(flops)], place, lambda _: None)
    trial = donor.trial(flops)
    start = {"trial": trial.id, "fingerprint": trial.fingerprint(), "flops": flops}
    reward = {"group_size": 4, "samples_of_start": 200}
    return trunk_of(start=start, reward=reward, evaluation={"first_flops": 1e7, "n_sequences": 8}), folder


def ends_of(trunk: TrunkSpec, folder: Path, stop: Counter | None = None, checkpoints: Path | None = None) -> Events:
    events: Events = []
    place = Place(starts_folder=str(folder), checkpoint_folder=str(checkpoints) if checkpoints else None)
    run_trunk(trunk, [float(budget.flops_at(trunk, n)) for n in (50, 60)], place, events.extend, stop or Counter())
    return [event for event in events if event["kind"] == "trial"]


def test_a_trial_from_a_start_ends_with_what_its_start_could_sample(
    from_a_start: tuple[TrunkSpec, Path], tmp_path: Path
) -> None:
    first, last = (end["reranking"] for end in ends_of(*from_a_start))
    of_start = ("n_samples", "flops", "greedy_right", "sampled_right")
    assert {k: first[k] for k in of_start} == {k: last[k] for k in of_start}
    assert last["n_samples"] == 200
    assert len(last["right"]) == 8
    counts, right = np.array(last["sampled_right"]), np.array(last["right"], bool)
    assert right.any()
    chance = np.exp(np.array(last["log_p"]))[right]  # of one right answer among several
    assert (counts[right] / 200 >= chance - 4 * np.sqrt(chance * (1 - chance) / 200) - 0.01).all()
    assert (np.array(last["least_log_p"]) >= np.array(last["log_p"])).all()
    ends_of(*from_a_start, Counter(52), tmp_path)
    assert [end["reranking"] for end in ends_of(*from_a_start, None, tmp_path)] == [first, last]


def test_star_samples_from_its_start_all_along(from_a_start: tuple[TrunkSpec, Path]) -> None:
    trunk, folder = from_a_start
    reward = trunk.model_dump()["reward"] | {"algorithm": "star"}
    events: Events = []
    star = TrunkSpec.model_validate(trunk.model_dump() | {"reward": reward})
    run_trunk(star, [float(budget.flops_at(star, 50))], Place(starts_folder=str(folder)), events.extend)
    asked = [e["sampled"]["sums"] for e in events if e["kind"] == "evaluation" and "sampled" in e]
    shares = np.array([s["right"] / s["samples"] for s in asked if s["samples"] >= 64])
    assert len(shares) > 1
    assert np.ptp(shares) < 0.25  # the same model, asked again and again
    with pytest.raises(ValueError, match="star"):
        trunk_of("star")


# Refusals --------------------------------------------------------------------------------------------------------


def test_families_without_a_checkable_answer_refuse_the_arm_by_name() -> None:
    with_arm = {name for name, kind in FAMILIES.items() if "reward" in kind.arms}
    assert {"compose", "rewrite", "table", "worked_parity"} <= with_arm
    for name in ("urns", "markov", "cipher"):
        with pytest.raises(ValueError, match="has no arm 'reward'"):
            trunk_of(family={"name": name})


def test_settings_of_the_reward_belong_to_its_arm() -> None:
    with pytest.raises(ValueError, match="no multiple of group_size 3"):
        trunk_of(group_size=3)
    assert trunk_of(reward=None).reward == Reward()
    with pytest.raises(ValueError, match="has no settings"):
        trunk_of(arm="steps")


PARITY = trunk_of(family={"name": "worked_parity", "n_positions": 6})


@pytest.mark.parametrize("trunk", [trunk_of(), text_trunk(), PARITY], ids=["compose", "rewrite", "worked_parity"])
def test_questions_are_a_pure_function_of_the_step_and_ask_training_tasks(trunk: TrunkSpec) -> None:
    family: Any = trunk.family
    one, again, other = (family.questions(trunk.request, step, 5) for step in (3, 3, 4))
    assert (
        [p.tolist() for p in one.prompts] == [p.tolist() for p in again.prompts] != [p.tolist() for p in other.prompts]
    )
    n_prompt, n_new = family.answer_shape
    assert max(map(len, one.prompts)) <= n_prompt
    assert one.n_new == n_new
    assert family.length("reward") == n_prompt + n_new - 1
    asked = set(family.questions(trunk.request, 5, 200).tasks)
    assert len(asked) == trunk.n_tasks


def test_a_family_that_lists_the_arm_without_its_questions_lacks_them_by_name() -> None:
    class Unasked(FAMILIES["urns"]):  # type: ignore[misc]
        arms = ("next_token", "reward")

    lacks = lacking(Unasked)
    assert lacks is not None
    assert all(f"{name}" in lacks for name in ("answer_shape", "questions(", "unseen_questions("))
    assert all(lacking(kind) is None for kind in FAMILIES.values())
