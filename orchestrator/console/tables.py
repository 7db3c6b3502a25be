"""Output of commands: the plan, the result, a comparison, the list of studies."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rich.table import Table

from orchestrator import files
from orchestrator.console import progress
from orchestrator.console.checks import UsageProblem, read_record, study_folders, trouble_words
from orchestrator.console.commands import program, to_copy
from orchestrator.console.data import data_rows
from orchestrator.formatting import clock, number, times
from orchestrator.plan import price
from orchestrator.record import lease, links, recorded
from orchestrator.stats.minimums import MIN_REPLICATES, MIN_SCALES
from orchestrator.study.claimable import planned
from orchestrator.study.schema import Study, model_words
from orchestrator.terminal import Terminal, shortened, styled
from trainers import budget


def show_plan(
    todo: price.Plan, folder: Path, slots_known: str = "", console: Terminal | None = None, brief: bool = False
) -> None:
    """Print the plan; `brief` for a run that starts."""
    console = console or Terminal()
    study = todo.study
    family: Any = study.family
    question = shortened(study.question.strip())
    console.print(styled((study.id, "bold"), f": {question}"), soft_wrap=not console.is_terminal)
    done = todo.n_trials - todo.n_open
    work = f"{times(todo.n_open, 'trial')} on {times(len(todo.jobs), 'trunk')} to run" + (
        f", {done} of {todo.n_trials} have ended" if done else ""
    )
    saved = 1 - (todo.train_flops + todo.kept_flops) / todo.separate_flops if todo.separate_flops else 0
    shared = "trunks and starts" if any(job.trunk.start for job in todo.jobs) else "trunks"
    kept = f", {number(float(todo.kept_flops))} more are done, in checkpoints" if todo.kept_flops else ""
    lines = [
        ("work", work),
        ("compute", f"{number(float(todo.train_flops))} training FLOPs ({saved:.0%} saved by sharing {shared}{kept}), "
                    f"evaluation {todo.eval_flops / max(todo.train_flops, 1):.1%} more"),
        ("time", _time_words(todo, slots_known)),
        *_caps(todo),
    ]  # fmt: skip
    if not brief:
        speed = f"{todo.flops_per_second:.3g} FLOPs/s a slot" if todo.flops_per_second else "unknown"
        lines += [
            ("speed", speed),
            ("tokens", f"{number(float(todo.tokens))} read in training"),
            *shape_rows(study),
            *_starts(study),
            *_places(todo),
            (
                "tasks",
                f"{', '.join(number(n) for n in sorted(study.axes.n_tasks))} of {number(float(family.n_tasks_max))}{' in each domain' if len(family.domains) > 1 else ''}",
            ),
            *data_rows(study),
            ("first", ", ".join(job.trunk.id for job in todo.jobs[:4]) + (" ..." if len(todo.jobs) > 4 else "")),
        ]
    if study.primary is not None:
        lines += [row for row in planned(study) if not brief or row[0] == "warning"]
    if not brief and len(study.axes.n_tasks) >= MIN_SCALES and study.axes.replicates < MIN_REPLICATES:
        lines.append(("warning", f"deciding between break and smooth takes at least {MIN_REPLICATES} replicates"))
    lines.append(("results", str(folder)))
    table = Table(box=None, show_header=False, padding=(0, 1))
    table.add_column(style="dim", justify="right")
    table.add_column(overflow="fold")
    for name, text in lines:
        table.add_row(name, text)
    console.print(table)


def _caps(todo: price.Plan) -> list[tuple[str, str]]:
    """The caps of a run, if there are any."""
    hours, flops = todo.options.max_hours, todo.options.max_flops
    words = [f"{hours:g} hours"] if hours is not None else []
    words += [f"{number(flops)} training FLOPs"] if flops is not None else []
    return [("cap", f"ends after {' or '.join(words)}, all runs together")] if words else []


def _time_words(todo: price.Plan, slots_known: str) -> str:
    """The time on these slots, or when it will be known."""
    on = f"on {times(todo.slots, 'slot')}{slots_known}"
    if todo.seconds is None:
        return f"{on}: known after the first reports, or now with {program()} plan --calibrate"
    return f"about {clock(todo.seconds)} {on}" + (f" (speed {todo.source})" if todo.seconds else "")


def _places(todo: price.Plan) -> list[tuple[str, str]]:
    """Placement of the trials and its reasons, except for the simple case of one worker and its whole batch."""
    rows = []
    for condition, key in todo.study.conditions.items():
        placements = {job.trunk.size: job.placement for job in todo.jobs if (job.trunk.arm, job.trunk.variant) == key}
        for size, (workers, fit, _) in placements.items():
            if fit is None:
                continue
            if todo.options.gpu_bytes or workers > 1 or fit.zero_stage or fit.accumulation > 1 or fit.recompute:
                which = " ".join([*([condition] if len(todo.study.conditions) > 1 else []), *([size] if size else [])])
                rows.append(("place", f"{which}{': ' if which else ''}{times(workers, 'worker')} a trial; {fit.why}"))
    return rows


def shape_rows(study: Study) -> list[tuple[str, str]]:
    """Rows of the plan with models and budgets; equal rows of several conditions are merged under their names."""
    alike: dict[tuple[str, str], list[str]] = {}
    for condition in study.conditions:
        for trunk, budgets in study.sizes(condition):
            steps = ", ".join(f"{number(b)} = {budget.steps_of(trunk, b).end:,}" for b in budgets)
            name = f"{condition} {trunk.size}".rstrip()
            alike.setdefault((model_words(trunk), f"{steps} steps"), []).append(name)
    rows = []
    for (model, steps), conditions in alike.items():
        which = f"{', '.join(conditions)}: " if len(alike) > 1 else ""
        rows += [("model", f"{which}{model}"), ("budgets", f"{which}{steps}")]
    return rows


def _starts(study: Study) -> list[tuple[str, str]]:
    """Rows of the plan with the donors of the conditions that have some, and the FLOPs that they are charged with."""
    rows = []
    for condition in study.conditions:
        if (start := study.start_of(condition)) is not None and (first := study.trunk_of(condition).start) is not None:
            tasks = f"{number(start.n_tasks)} tasks" if start.n_tasks else "as many tasks"
            donor = f"{study.condition_of(start.arm, start.variant or '')} at {number(start.compute_flops)} FLOPs and {tasks}"
            after = ", ".join(number(flops) for flops in study.budgets_of(condition))
            charged = f"its {number(float(first.flops))} FLOPs count; budgets {after}"
            rows.append(("start", f"{condition} begins with the weights of {donor}; {charged}"))
    return rows


def show_result(
    study: Study, folder: Path, uri: str, console: Terminal, tracking_uri: str | None, study_name: str
) -> bool:
    """Print the results and their places. Returns False if tables or report are out of date and no publisher is at work."""
    from orchestrator.analysis import answer, findings
    from orchestrator.record import publisher

    surface = progress.Surface(study, recorded.read(folder, study))
    page = folder / "report.html"
    found = None
    if publisher.report_is_current(folder, study):
        with contextlib.suppress(OSError):  # damaged or removed a moment ago
            found = findings.read(folder, study)
    console.print(f"\n{answer.sentence(found)}\n" if found is not None else "")
    console.print(surface.render())
    if found is not None:
        if found.primary is not None:
            verdict, claim = answer.badge(found)
            console.print(styled(("\nPrimary claim: ", ""), (verdict, "bold"), f". Claimed before the run: {claim}."))
        console.print("\n".join(answer.more(found)))
        place = str(page)
    elif publisher.is_publishing(folder):
        place = f"still being written, to {page}"
    else:
        older = f"; {page} is older" if page.exists() else ""
        place = f"not written yet{older}. Write it with: {program()} publish {study_name}"
    console.print(f"\nReport:    {place}", soft_wrap=True)
    shown = found is not None or publisher.is_publishing(folder)
    published = publisher.mlflow_is_current(folder, uri, study) or publisher.is_publishing(folder)
    if not published:
        console.print(f"MLflow:    not up to date. Update it with: {program()} publish {study_name}", soft_wrap=True)
    elif link := links.study_link(folder, uri):
        console.print(f"MLflow:    {link}", soft_wrap=True)
    if links.is_local(uri):
        address = links.ui_address(uri)
        words = [program(), "ui", *(["--port", str(urlsplit(address).port)] if address != links.LOCAL_UI else [])]
        words += ["--tracking-uri", tracking_uri] if tracking_uri else []
        console.print(f"MLflow UI: {to_copy(words)}", soft_wrap=True)
    return shown


def show_comparison(found: Any) -> None:
    """Print a comparison of two studies."""
    from orchestrator.analysis.compare import more, sentence

    console = Terminal()
    console.print("\n".join([sentence(found), *more(found)]))
    if found.settings:
        console.print(styled(("\nSettings that differ", "bold"), f" ({found.a.study.id} -> {found.b.study.id})"))
        for line in found.settings:
            console.print(f"  {line}")
    if cells := found.significant("difference"):
        console.print(f"{times(len(cells), 'cell')} with a significant difference, on the page")


def list_studies(console: Terminal) -> None:
    """One line for each study, also if some cannot be read."""
    folders = study_folders()
    if not folders:
        console.print(f"No study has run yet in {files.home_folder()}.")
    for folder in folders:
        try:
            study, state = read_record(folder)
            held = lease.is_held(folder)
        except (OSError, UsageProblem) as problem:
            line = f"{folder.name}: {trouble_words(problem)}" if isinstance(problem, OSError) else str(problem)
        else:
            running = "running" if held else "not running"
            line = f"{folder.name}: nothing is recorded yet, {running}"
            if study is not None:
                ended = sum(t.id in state.trials for t in study.trials())
                other = "" if study.id == folder.name else f"{folder.name}, which is renamed or copied: "
                line = f"{other}{study.id}: {ended} of {len(study.trials())} trials ended, {running}"
                line += "; its journal is damaged" if state.short else ""
        console.print(line, soft_wrap=True)
