"""A trunk that begins with the weights of another trial: the same as a plain loop from them, charged, evaluated first, resumed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from safetensors.torch import load_file
from steps import Counter
from test_train import Events, alone, ends, keyed, run, trunk_of

from trainers import __main__ as command
from trainers import checkpoint, weights
from trainers.budget import flops_at, flops_per_step, price, shape_of
from trainers.engine.evaluation import evaluate
from trainers.fit.place import Place
from trainers.models.transformer import build
from trainers.spec import Start, TrialSpec, TrunkSpec

DONOR = trunk_of()
COST = flops_per_step(DONOR)
DONATED = 50.0 * COST
BUDGETS = [float(flops_at(DONOR, n)) for n in (100, 115)]
"""Of the dependent: 50 and 65 steps of its own."""


def start_of(donor: TrialSpec, flops: int) -> Start:
    return Start(trial=donor.id, fingerprint=donor.fingerprint(), flops=flops)


def dependent_of(**changes: object) -> TrunkSpec:
    """A trunk of the other arm that begins with the donor's weights."""
    return trunk_of(arm="next_token", **changes).model_copy(update={"start": start_of(DONOR.trial(DONATED), 50 * COST)})


DEPENDENT = dependent_of()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the donor has left its weights: those of one of its two budgets."""
    folder = tmp_path_factory.mktemp("starts")
    place = Place(starts_folder=str(folder), starts=(DONATED,))
    donated = run(DONOR, [DONATED, 60.0 * COST], place)
    (folder / "rows.json").write_text(json.dumps(rows_at(donated, repr(DONATED), 50)))
    assert [file.relative_to(folder) for file in folder.rglob("*.safetensors")] == [
        Path(f"{DONOR.trial(DONATED).id}.safetensors")
    ]
    return folder


def rows_at(events: Events, on: str, step: int) -> object:
    return next(e["rows"] for e in events if e["kind"] == "evaluation" and (e["on"], e["step"]) == (on, step))


def place_of(starts: Path, checkpoints: Path) -> Place:
    return Place(starts_folder=str(starts), checkpoint_folder=str(checkpoints), checkpoint_every_seconds=1e9)


@pytest.fixture(scope="module")
def whole(folder: Path) -> Events:
    return run(DEPENDENT, BUDGETS, Place(starts_folder=str(folder)))


def test_its_first_score_is_that_of_the_donors_end_and_lies_at_the_donors_compute(folder: Path) -> None:
    same = DONOR.model_copy(update={"start": DEPENDENT.start})
    events = run(same, BUDGETS, Place(starts_folder=str(folder)))
    first = next(event for event in events if event["kind"] == "evaluation")
    assert (first["step"], first["flops"], first["flops_run"], first["grid"]) == (0, DONATED, 0, True)
    assert json.loads(json.dumps(first["rows"])) == json.loads((folder / "rows.json").read_text())
    for flops, end in ends(events).items():
        assert end["flops_own"] == flops  # charged with what the donor cost
    assert sum(end["flops_run"] for end in ends(events).values()) == (52 + 10 + 13) * COST


def test_it_goes_on_from_the_donors_weights_as_a_plain_loop_does_to_the_bit(folder: Path) -> None:
    trunk = dependent_of(training={"batch_size": 8, "learning_rate": 0.003, "schedule": "constant"})
    family, training = trunk.family, trunk.training
    net = build(trunk.model, family.vocab_size, family.length(trunk.arm), trunk.replicate)  # type: ignore[attr-defined]
    net.load_state_dict(load_file(folder / f"{DONOR.trial(DONATED).id}.safetensors"), strict=False)
    adamw = torch.optim.AdamW(
        net.parameters(), lr=0.003, betas=(training.beta1, training.beta2), weight_decay=0.0, fused=True
    )
    for step in range(50):
        batch = family.batch(trunk.request, step)  # type: ignore[attr-defined]
        tokens, mask = torch.from_numpy(batch.tokens), torch.from_numpy(batch.loss_mask)
        adamw.zero_grad()
        F.cross_entropy(net(tokens[:, :-1], mask), tokens[:, 1:][mask]).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), training.clip_norm)
        adamw.step()
    events = run(trunk, BUDGETS[:1], Place(starts_folder=str(folder)))
    assert rows_at(events, repr(BUDGETS[0]), 50) == evaluate(alone(net), family.suite(trunk.request))  # type: ignore[attr-defined]


@pytest.mark.parametrize("n", [0, 1, 30, 52, 64])
def test_a_dependent_that_was_stopped_needs_its_start_no_more_and_comes_to_the_same_to_the_bit(
    n: int, folder: Path, whole: Events, tmp_path: Path
) -> None:
    before = run(DEPENDENT, BUDGETS, place_of(folder, tmp_path), Counter(n))
    after = run(DEPENDENT, BUDGETS, place_of(tmp_path / "nothing", tmp_path))
    assert keyed(before + after) == keyed(whole)


def test_a_start_that_is_lost_or_does_not_fit_is_one_line_that_names_the_donor(folder: Path, tmp_path: Path) -> None:
    donor, wide = DONOR.trial(DONATED), trunk_of(model={"n_layers": 1, "d_model": 32, "n_heads": 2, "d_mlp": 24})
    wide = wide.model_copy(update={"start": DEPENDENT.start})
    for trunk, starts in ((DEPENDENT, tmp_path), (DEPENDENT, None), (wide, folder)):
        with pytest.raises(OSError, match=donor.id) as refusal:
            run(trunk, [float(flops_at(trunk, 50))], Place(starts_folder=str(starts) if starts else None))
        assert "\n" not in str(refusal.value)


def test_a_trial_in_a_file_of_its_own_begins_with_weights_that_another_kept(tmp_path: Path, capsys) -> None:
    kept, file = str(tmp_path / "kept"), tmp_path / "trial.json"
    file.write_text(json.dumps(DONOR.model_dump(mode="json", exclude={"start"}) | {"compute_flops": DONATED}))
    assert command.main([str(file), "--keep-weights", kept]) == 0
    file.write_text(json.dumps(DEPENDENT.model_dump(mode="json") | {"compute_flops": BUDGETS[0]}))
    assert command.main([str(file)]) == 2 and "--starts" in capsys.readouterr().err
    assert command.main([str(file), "--starts", kept, "--prove"]) == 0
    out = capsys.readouterr().out
    assert f"done after 50 steps, {100 * COST:.4g} FLOPs" in out and "equals the trunk, to the bit" in out
    weights.remove(kept, DONOR.trial(DONATED).id)
    assert command.main([str(file), "--starts", kept]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and DONOR.trial(DONATED).id in err and "missing" in err
    assert checkpoint.numbers(tmp_path) == []


@pytest.mark.parametrize("n", [1, 45])
def test_star_samples_from_its_start_all_along_also_after_a_stop(n: int, tmp_path: Path) -> None:
    """Fails if a resumed run samples from its present weights."""
    record = DONOR.model_dump(mode="json", exclude={"start", "reward"}) | {
        "family": {"name": "worked_parity", "n_positions": 6},
        "arm": "next_token",
        "model": {"n_layers": 1, "d_model": 16, "n_heads": 2, "d_mlp": 24, "positions": "learned"},
    }
    taught = TrunkSpec.model_validate(record)
    budget = float(flops_at(taught, 50))
    starts = tmp_path / "starts"
    run(taught, [budget], Place(starts_folder=str(starts), starts=(budget,)))
    record |= {"arm": "reward", "reward": {"algorithm": "star", "group_size": 2, "samples_of_start": 8}}
    with pytest.raises(ValidationError, match="star"):
        TrunkSpec.model_validate(record)
    start = start_of(taught.trial(budget), round(budget))
    trunk = TrunkSpec.model_validate(record | {"start": start.model_dump()})
    assert shape_of(trunk).seq_len < shape_of(taught).seq_len  # it begins with the first of the donor's positions
    budgets = [float(flops_at(trunk, 50))]
    whole = run(trunk, budgets, Place(starts_folder=str(starts)))
    assert any(event["sampled"]["sums"]["right"] for event in whole if event.get("sampled"))
    (end,) = ends(whole).values()
    assert end["reranking"]["flops"] == price(trunk, budgets).start_flops > 0
    there = run(trunk, budgets, place_of(starts, tmp_path), Counter(n)) + run(
        trunk, budgets, place_of(starts, tmp_path)
    )
    assert keyed(there) == keyed(whole)
