"""The leak certificate: planted copies are found, clean sets are not accused."""

from __future__ import annotations

import numpy as np

from trainers.data.leaks import Item, compare, content_hash, exact_copies, pools


def items(n: int, task: str = "a", start: int = 0) -> list[Item]:
    return [Item(f"prompt {i}", f"target {i}", task, f"row {i}") for i in range(start, start + n)]


def test_no_item_of_ten_thousand_is_zero_and_a_planted_hundredth_is_found_whole() -> None:
    train, held_out = items(20_000), items(10_000, "b", 20_000)
    pool = pools({"train": train, "held_out": held_out})
    clean = compare(pool["train"], {"held_out": pool["held_out"]})
    assert clean.certificate.sets["held_out"].n_exact == 0 and not clean.certificate.leaking and not len(clean.drop)
    planted = [Item(f" {item.prompt}\n", item.target.replace(" ", "  "), "c") for item in held_out[:100]]
    pool = pools({"train": train + planted, "held_out": held_out})
    leaking = compare(pool["train"], {"held_out": pool["held_out"]})
    assert leaking.certificate.sets["held_out"].n_exact == 100 and "100 of 10000" in leaking.certificate.leaking
    assert leaking.drop.tolist() == list(range(20_000, 20_100))


def test_exact_copies_are_all_pairs_of_equal_hashes() -> None:
    draw = np.random.default_rng(0)
    train, held_out = (np.array([bytes([value]) * 16 for value in draw.integers(0, 9, n)], "S16") for n in (50, 20))
    pairs = set(zip(*(places.tolist() for places in exact_copies(train, held_out)), strict=True))
    assert pairs == {(h, t) for h in range(20) for t in range(50) if held_out[h] == train[t]}


def test_content_ignores_white_space_and_unicode_form_and_nothing_else() -> None:
    assert content_hash("a  b\n", "caf\u00e9") == content_hash("a b", "cafe\u0301")
    assert len({content_hash(*pair) for pair in [("a b", "c"), ("a", "b c"), ("ab", "c"), ("A b", "c")]}) == 4
