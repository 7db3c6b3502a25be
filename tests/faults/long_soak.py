"""Random faults of all kinds for five minutes, with Ray: studies are begun, hit and gone on with until time is up. `make faults-long`."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from conftest import PATIENCE_SECONDS, tally
from with_ray import DRAWN, SEED, WORDS, Faulty, Run, to_all, to_driver, to_group, to_parent

from orchestrator.record import lease

pytestmark = pytest.mark.end_to_end
SOAK_SECONDS = float(os.environ.get("SOAK_SECONDS", 300))
STOPPED = {"parent": to_parent, "group": to_group, "driver": to_driver, "all": to_all}


def hit(run: Run) -> str:
    """Do one thing to a run; returns what."""
    kind, holder = DRAWN.choice(["kill", "stop", "stop command"]), lease.lock_holder(run.home.study)
    if kind == "kill":
        there = {"driver": [holder["pid"]] if holder else []} | {what: run.home.pids_of(what) for what in WORDS}
        what = DRAWN.choice([what for what, pids in there.items() if pids] or ["driver"])
        for pid in there[what][:1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return f"kill -9 {what}"
    if kind == "stop":
        whom = DRAWN.choice([whom for whom in STOPPED if holder or whom != "driver"])
        number = DRAWN.choice([signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
        STOPPED[whom](run, number)
        return f"{number.name} to {whom}"
    run.home.emergence("stop", str(run.home.file))
    return "emergence stop"


def spoil(home: Faulty) -> str:
    """Damage one file of a study that does not run; returns what."""
    files = {
        "journal": [home.study / "journal.jsonl"],
        "checkpoint": sorted((home.study / "checkpoints").rglob("*.*")),
        "table": [home.study / "results.parquet"],
        "MLflow's store": [home.study.parent / "mlflow.db"],
        "lock": [home.study / "driver.lock"],
    }
    kind = DRAWN.choice([name for name, paths in files.items() if any(path.is_file() for path in paths)])
    path: Path = DRAWN.choice([path for path in files[kind] if path.is_file()])
    data = bytearray(path.read_bytes())
    how = DRAWN.choice(["flip", "cut", "remove"]) if kind not in ("journal", "MLflow's store") else "flip"
    if kind == "MLflow's store":  # a database with a flipped bit is another matter than one that is gone
        how = "remove"
    if how == "remove" or not data:
        path.unlink()
    elif how == "cut":
        path.write_bytes(data[: DRAWN.randrange(len(data))])
    else:
        data[DRAWN.randrange(len(data))] ^= 1 << DRAWN.randrange(8)
        path.write_bytes(data)
    return f"{how} {kind}"


def test_whatever_happens_the_results_are_those_of_a_study_left_alone(tmp_path: Path) -> None:
    golden = Faulty(tmp_path / "golden")
    code, out = golden.run()
    assert code == 0, out
    rows = golden.rows()
    until, n_studies, done = time.monotonic() + SOAK_SECONDS, 0, Counter[str]()
    print(f"\nFAULTS_SEED={SEED}")
    while time.monotonic() < until:
        home = Faulty(tmp_path / f"study{n_studies}")
        n_studies += 1
        for _ in range(DRAWN.randrange(1, 6)):
            run = Run(home, wait=False)
            moment = time.monotonic() + DRAWN.uniform(0.0, 40.0)
            while time.monotonic() < moment and run.parent.poll() is None:
                time.sleep(0.05)
            if run.parent.poll() is None and (home.study / "driver.lock").exists():
                done[hit(run)] += 1
                if DRAWN.random() < 0.5:
                    run.parent.send_signal(signal.SIGTERM)
            else:
                run.parent.send_signal(signal.SIGTERM)
            out, _ = run.parent.communicate(timeout=PATIENCE_SECONDS)
            assert "Traceback" not in out, out
            home.wait_until_gone()
            if home.study.exists() and DRAWN.random() < 0.5:
                done[spoil(home)] += 1
            assert all(rows[key] == found for key, found in home.rows().items())
        code, out = home.run()
        assert code == 0 and "Traceback" not in out, out
        assert (home.study / "results.parquet").read_bytes() == (golden.study / "results.parquet").read_bytes()
        assert set(home.mlflow_runs().values()) == {1} and len(home.mlflow_runs()) == len(golden.mlflow_runs())
    for what, n in sorted(done.items()):
        print(f"  {what}: {n}")
    tally(f"soak of {SOAK_SECONDS:.0f} s, {n_studies} studies", done.total(), done.total())
