"""Objectives, and what the engine makes of them; a family and an objective from outside the package."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from test_train import TINY as TRUNK

from orchestrator.analysis import findings
from orchestrator.record import publisher
from orchestrator.record.journal import Journal
from orchestrator.record.provenance import session_event
from orchestrator.study.schema import Study
from trainers.budget import flops_per_step
from trainers.engine.engine import Engine
from trainers.engine.evaluation import answers_on_device, chunk_of, evaluate, suite_of
from trainers.engine.rows import NoTargetsError, Rows
from trainers.fit.place import Place
from trainers.models.transformer import build
from trainers.objectives import objective_of
from trainers.objectives.supervised import Supervised
from trainers.shapes import Model
from trainers.spec import TrunkSpec
from trainers.tasks import FAMILIES, Batch, Family, ItemSet, Probe, register
from trainers.tasks.request import Request
from trainers.train import run_trunk


class Masked(Supervised):
    """The batches of the family with some rows' targets taken away."""

    def __init__(self, trunk: TrunkSpec, kept: slice) -> None:
        super().__init__(trunk)
        self.kept = kept

    def batch(self, step: int) -> Batch:
        batch = super().batch(step)
        mask = np.zeros_like(batch.loss_mask)
        mask[self.kept] = batch.loss_mask[self.kept]
        return batch._replace(loss_mask=mask)


def after_steps(micro_batch: int | None, kept: slice, n: int = 3) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses of some steps, and the weights after them."""
    trunk = TrunkSpec.model_validate(TRUNK)
    engine, learning = Engine(trunk, Place(micro_batch=micro_batch)), Masked(trunk, kept)
    losses = [engine.step(learning, i, 1e-2)[0] for i in range(n)]
    weights = engine.snapshot(moments=False)
    engine.destroy()
    return losses, weights


@pytest.mark.parametrize("kept", [slice(0, 4), slice(1, 2), slice(0, 7)])
def test_the_loss_is_the_mean_over_the_batchs_targets_however_they_fall_into_micro_batches(kept: slice) -> None:
    """Fails if micro-batches are averaged alike: targets of a fuller one then weigh less. Where one has no target, 0/0 diverged."""
    whole, weights = after_steps(None, kept)
    for micro_batch in (4, 2, 1):
        losses, others = after_steps(micro_batch, kept)
        assert losses == pytest.approx(whole, rel=1e-5)
        assert all(torch.allclose(others[name], w, atol=1e-5) for name, w in weights.items())


def test_a_batch_without_targets_is_an_error_by_name_and_changes_nothing() -> None:
    trunk = TrunkSpec.model_validate(TRUNK)
    engine = Engine(trunk, Place(micro_batch=2))
    before = engine.snapshot()
    with pytest.raises(NoTargetsError, match=r"answer/n8/r0: step 4: the batch has no target"):
        engine.step(Masked(trunk, slice(0, 0)), 4, 1e-2)
    assert all(torch.equal(before[name], now) for name, now in engine.snapshot().items())
    engine.destroy()


def test_answers_scored_by_torch_are_those_scored_by_numpy() -> None:
    """What a GPU would do, on the CPU: the same numbers but for the last digits."""
    trunk = TrunkSpec.model_validate(TRUNK)
    family: Any = trunk.family
    for items in family.suite(trunk.request):
        shape = (*items.tokens[:, 1:].shape, family.vocab_size)
        logs = torch.randn(shape, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
        rows = np.array([5, 0, 3])
        for probe in items.probes:
            ours = probe.answers(logs[rows].numpy(), rows)
            theirs = answers_on_device(probe, logs[rows], rows).numpy()
            assert np.allclose(ours, theirs, rtol=1e-12, atol=0) and ours.any() == probe.mask[rows].any()


@pytest.mark.parametrize("micro_batch", [None, 5, 1])
def test_on_a_cpu_an_evaluation_does_not_depend_on_the_micro_batch(micro_batch: int | None) -> None:
    """To the bit. Fails if the chunks of an evaluation follow the micro-batch there."""
    trunk = TrunkSpec.model_validate(TRUNK | {"training": TRUNK["training"] | {"batch_size": 5}})
    engine = Engine(trunk, Place(micro_batch=micro_batch))
    rows = evaluate(engine, suite_of(trunk))
    assert chunk_of(engine.place) == 256 and chunk_of(Place(device="cuda", micro_batch=4)) == 4
    engine.destroy()
    alone = Engine(trunk, Place())
    assert rows == evaluate(alone, suite_of(trunk))
    alone.destroy()


@pytest.mark.parametrize("positions", ["rotary", "learned"])
@pytest.mark.parametrize("change", [{}, {"conv_kernel": 4}, {"attention_window": 3}])
def test_sequences_that_share_a_row_do_not_see_each_other(positions: str, change: dict[str, Any]) -> None:
    """Logits of two sequences in one row equal theirs alone, by `positions` and `segments`; without those they do not."""
    model = Model(n_layers=2, d_model=16, n_heads=2, d_mlp=32, positions=positions, embed_std=0.5, **change)
    net = build(model, 11, 12, replicate=0)
    draw = torch.Generator().manual_seed(0)
    first, second = torch.randint(0, 11, (3, 5), generator=draw), torch.randint(0, 11, (3, 7), generator=draw)
    row = torch.cat([first, second], dim=1)
    places = torch.cat([torch.arange(5), torch.arange(7)]).expand(3, -1)
    segments = torch.tensor([0] * 5 + [1] * 7).expand(3, -1)
    with torch.no_grad():
        packed, alone = net(row, None, places, segments), torch.cat([net(first), net(second)], dim=1)
        torch.testing.assert_close(packed, alone)
        assert not torch.allclose(net(row), alone, atol=1e-3)


# From outside the package ------------------------------------------------------------------------------------------


class Twice(Family):
    """A family without references: say the symbol of the sequence again. Task = symbol."""

    name: Literal["twice"] = "twice"
    version: ClassVar[int] = 1
    arms: ClassVar[tuple[str, ...]] = ("answer", "hit")
    objectives: ClassVar[dict[str, str]] = {"hit": f"{__name__}:Hit"}
    headline: ClassVar[str] = "again"
    mixture: ClassVar[str] = "again"
    skills: ClassVar[dict[str, str]] = {"again": "say it again"}
    vocab_size = property(lambda self: 12)  # type: ignore[assignment]
    seq_len = property(lambda self: 3)  # type: ignore[assignment]
    n_tasks_max = property(lambda self: 8)  # type: ignore[assignment]

    def _tokens(self, symbols: np.ndarray) -> np.ndarray:
        return np.repeat(symbols[:, None], 4, axis=1)

    def contents(self, request: Request, split: str, n: int) -> list[bytes]:
        symbols = range(request.n_tasks) if split == "seen" else range(8, 12)
        return [bytes([s]) for s in list(symbols)[:n]]

    def batch(self, request: Request, step: int) -> Batch:
        draw = np.random.default_rng([request.replicate, step])
        return Batch(
            self._tokens(draw.integers(0, request.n_tasks, request.batch_size)), np.ones((request.batch_size, 3), bool)
        )

    def suite_size(self, request: Request) -> int:
        return 2 * request.n_sequences

    def suite(self, request: Request) -> list[ItemSet]:
        def items(split: str, symbols: np.ndarray) -> ItemSet:
            tokens = self._tokens(symbols)
            probe = Probe(skill="again", split=split, mask=np.ones((len(tokens), 3), bool), target=tokens[:, 1:])
            return ItemSet(tokens=tokens, probes=(probe,))

        n = np.arange(request.n_sequences)
        return [items("held_out", 8 + n % 4), items("seen", n % request.n_tasks)]


class Hit(Supervised):
    """Another objective: be right as often as possible, 1 - p, in place of the log loss."""

    def loss(self, model: Any, rows: Rows) -> torch.Tensor:
        logits = model(rows.tokens[:, :-1], rows.loss_mask)
        right = logits.softmax(-1).gather(1, rows.tokens[:, 1:][rows.loss_mask][:, None])
        return 1 - right.mean()


@pytest.fixture
def twice() -> Iterator[type[Family]]:
    register(Twice)
    yield Twice
    del FAMILIES["twice"]


def test_a_family_without_references_and_an_objective_from_outside_train_and_are_examined(
    twice: type[Family], tmp_path: Path
) -> None:
    record = {
        "study": "outside",
        "version": 1,
        "question": "Is it said again?",
        "family": {"name": "twice"},
        "axes": {"arm": ["answer", "hit"], "n_tasks": [2, 8], "compute_flops": [3e7, 6e7], "replicates": 2},
        "model": {"n_layers": 1, "d_model": 16, "n_heads": 2, "d_mlp": 32},
        "training": {"batch_size": 8, "learning_rate": 2e-2, "warmup_steps": 5},
        "evaluation": {"first_flops": 1e6, "n_sequences": 8, "points_per_decade": 2},
    }
    study = Study.from_record(record)
    log = Journal(tmp_path / study.id)
    log.append([session_event(study, {}, "x")])
    for trunk, budgets in study.carried():
        assert min(budgets) > 50 * flops_per_step(trunk)
        assert type(objective_of(trunk)) is (Hit if trunk.arm == "hit" else Supervised)
        assert run_trunk(trunk, budgets, Place(), log.append) == "finished"
    log.close()
    publisher.rewrite(tmp_path / study.id)
    found = findings.read(tmp_path / study.id, study)
    for arm in study.axes.arm:
        seen = found.results.values("accuracy", arm, "again", "seen", 8, 6e7)
        assert all(value is not None and value > 0.95 for value in seen)
    ends = {run["arm"]: run["status"] for run in found.runs}
    assert ends == {"answer": "done", "hit": "done"}
    page = (tmp_path / study.id / "report.html").read_text()
    assert "say it again" in page and "not defined" in page  # no memoriser, no generaliser: no ability
