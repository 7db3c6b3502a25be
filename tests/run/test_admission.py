"""Who may start: nobody ever holds some of its workers and waits for the rest, wide trunks are not starved, and all run once."""

from __future__ import annotations

import random

from ray.tune.search import Searcher

from orchestrator.run.admission import Admission, Ask


def asks_of(*widths: int) -> list[Ask]:
    return [Ask({"job": i}, width, f"t{i}") for i, width in enumerate(widths)]


def test_whatever_the_widths_and_sizes_all_run_once_and_never_more_than_fit() -> None:
    draw = random.Random(1)
    for _ in range(300):
        n_slots = draw.randint(1, 9)
        widths = sorted((draw.randint(1, n_slots) for _ in range(draw.randint(1, 30))), reverse=True)
        admission = Admission(asks_of(*widths), lambda n_slots=n_slots: n_slots)  # type: ignore[misc]
        running: dict[str, int] = {}
        given: list[int] = []
        for turn in range(10_000):
            config = admission.suggest(str(turn))
            if config == Searcher.FINISHED:
                break
            if config is None:
                over = draw.choice(sorted(running))
                del running[over]
                admission.on_trial_complete(over)
                continue
            running[str(turn)] = widths[config["job"]]
            given.append(config["job"])
            assert sum(running.values()) <= n_slots
        assert sorted(given) == list(range(len(widths)))


def test_a_narrow_trunk_fills_the_room_that_a_wide_one_leaves_and_gives_way_to_the_next_wide_one() -> None:
    admission = Admission(asks_of(2, 2, 1, 1, 1), lambda: 3)
    assert [admission.suggest(name) for name in "abc"] == [{"job": 0}, {"job": 2}, None]
    admission.on_trial_complete("a")
    assert admission.suggest("d") == {"job": 1}  # before the narrow ones that have waited as long
    admission.on_trial_complete("b")
    assert [admission.suggest(name) for name in "ef"] == [{"job": 3}, None]


def test_a_cluster_that_grows_is_used_and_one_that_shrank_is_not_overrun(monkeypatch) -> None:
    monkeypatch.setattr("orchestrator.run.admission.LOOK_EVERY_SECONDS", -1.0)
    slots, wanted = [0], list[int]()
    admission = Admission(asks_of(2, 1, 1), lambda: slots[0], wanted.append)
    assert admission.suggest("a") is None and wanted == [4]  # an autoscaler is told what would be of use
    slots[0] = 3
    assert [admission.suggest(name) for name in "ab"] == [{"job": 0}, {"job": 1}]
    slots[0] = 2  # a machine is lost; its trunk is started again where there is room
    assert admission.suggest("c") is None
    admission.on_trial_complete("b", error=True)
    assert admission.suggest("c") is None
    admission.on_trial_complete("a")
    assert admission.suggest("c") == {"job": 2} and wanted == [4, 3, 1]
    assert admission.suggest("d") == Searcher.FINISHED


def test_what_is_waited_for_is_said_when_the_cluster_is_too_small_for_it(monkeypatch) -> None:
    monkeypatch.setattr("orchestrator.run.admission.SAY_EVERY_SECONDS", -1.0)
    said: list[str] = []
    admission = Admission(asks_of(2, 1), lambda: 2, say=said.append)
    assert admission.suggest("a") == {"job": 0} and admission.suggest("b") is None
    assert said == []  # it is for other trunks to end, not for machines to come
    admission = Admission(asks_of(4, 1), lambda: 2, say=said.append)
    assert admission.suggest("a") == {"job": 1}  # meanwhile what does fit runs
    assert said == ["Waiting for machines: t0 needs 4 slots, the cluster has 2 now."]


def test_a_wide_trunk_is_not_starved_by_narrow_ones_that_were_there_before_the_cluster_grew(monkeypatch) -> None:
    monkeypatch.setattr("orchestrator.run.admission.LOOK_EVERY_SECONDS", -1.0)
    slots, order, running = [1], list[int](), list[str]()
    admission = Admission(asks_of(2, *[1] * 10), lambda: slots[0])
    for turn in range(100):
        config = admission.suggest(str(turn))
        if config == Searcher.FINISHED:
            break
        if config is None:
            admission.on_trial_complete(running.pop(0))  # they end one by one, so that never two slots are free at once
            continue
        order.append(config["job"])
        running.append(str(turn))
        slots[0] = 2
    assert sorted(order) == list(range(11)) and order.index(0) <= 3


def test_who_waits_for_a_donor_holds_no_slot_and_all_run_once_after_their_donors() -> None:
    """Fails with a deadlock if a trunk that cannot start yet keeps slots free, or is the one that others must not pass."""
    draw = random.Random(2)
    for _ in range(300):
        n_slots, n = draw.randint(1, 4), draw.randint(1, 20)
        donors = [draw.choice(["", *(f"t{j}" for j in range(i))]) if i else "" for i in range(n)]
        asks = [Ask({"job": i}, draw.randint(1, n_slots), f"t{i}", donor) for i, donor in enumerate(donors)]
        draw.shuffle(asks)
        statuses: dict[str, str] = {}
        gone: list[str] = []
        admission = Admission(
            asks,
            lambda n_slots=n_slots: n_slots,
            status=statuses.get,
            lost=lambda ask, gone=gone: gone.append(ask.name),
        )  # type: ignore[misc]
        running: dict[str, int] = {}
        given: list[str] = []
        for turn in range(10_000):
            config = admission.suggest(str(turn))
            if config == Searcher.FINISHED:
                break
            if config is None:
                over = draw.choice(sorted(running))
                if draw.random() < 0.3:  # its donated trial ends before the trunk does
                    statuses.setdefault(f"t{running[over]}", "done")
                    continue
                statuses.setdefault(f"t{running.pop(over)}", draw.choice(["done", "done", "done", "diverged"]))
                admission.on_trial_complete(over)
                continue
            assert statuses.get(donors[config["job"]], "done") == "done"
            running[str(turn)] = config["job"]
            given.append(f"t{config['job']}")
            assert sum(ask.slots for ask in asks if ask.config["job"] in running.values()) <= n_slots
        assert sorted(given + gone) == sorted(ask.name for ask in asks)
        lost = {name for name, status in statuses.items() if status != "done"} | set(gone)
        assert all((donors[int(name[1:])] in lost) == (name in gone) for name in given + gone)


def test_a_donor_that_nobody_can_end_any_more_is_lost_and_nothing_waits_for_ever() -> None:
    asks = [Ask({"job": 0}, 1, "t0"), Ask({"job": 1}, 1, "t1", "a trial that is nowhere")]
    lost: list[str] = []
    admission = Admission(asks, lambda: 1, status=lambda donor: None, lost=lambda ask: lost.append(ask.name))
    assert admission.suggest("a") == {"job": 0} and admission.suggest("b") is None and lost == []
    admission.on_trial_complete("a")
    assert admission.suggest("b") == Searcher.FINISHED and lost == ["t1"]
