"""The view of a study's experiment in MLflow's UI: columns, order of rows, charts. Imports no MLflow.

MLflow keeps a shared view in a tag of the experiment, and an address with its key opens it. The UI also lists it under
"Views". The format is that of MLflow 3.17; an earlier 3.x reads the fields beside `state`.
"""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any, cast

from orchestrator.analysis.measures import headline
from orchestrator.formatting import number
from orchestrator.record.links import VIEW_KEY
from orchestrator.study.schema import Study
from trainers.tasks import Family
from trainers.tasks.text import SPLITS

TAG = f"mlflow.sharedViewState.{VIEW_KEY}"
"""The experiment's tag that holds the view."""

NAME = "Results by tasks and compute"

_COLUMNS = {
    **{"attributes.`Run Name`": 205, "runDateAndNestInfo": 112},  # always shown, and always first
    **{"params.`condition`": 80, "tags.`n_tasks`": 70, "tags.`compute_flops`": 110, "params.`replicate`": 74},
}
"""First columns of the runs table, in order -> width in pixels. Those of the headline measures follow."""


def tag(study: Study, created_seconds: float) -> str:
    """The value of the tag."""
    view = _table(study) | _charts(study)
    packed = base64.b64encode(zlib.compress(json.dumps(view).encode(), 9)).decode()
    named = {"name": NAME, "createdAt": round(created_seconds * 1000), "state": f"deflate;{packed}"}
    return json.dumps(named | _table(study), separators=(",", ":"))


def _table(study: Study) -> dict[str, Any]:
    shown = headline(cast(Family, study.family).ability_of)
    columns = _COLUMNS | dict.fromkeys((f"metrics.`{name}`" for name in shown), 82)
    columns |= {"metrics.`reward/right`": 100, "tags.`outcome`": 120} if "reward" in study.axes.arm else {}
    return {
        "selectedColumns": [name for name in columns if "." in name],
        "columnOrder": list(columns),
        "columnWidths": columns,
        "orderByKey": "tags.`emergence.order`",
        "orderByAsc": True,
        "runsHiddenMode": "SHOW_ALL",
        "runListHidden": True,  # beside charts
    }


def _charts(study: Study) -> dict[str, Any]:
    """Charts of the results against the axes, then training curves. All others follow in sections that are closed."""
    skill, mixture = study.shown_skills[0], cast(Family, study.family).mixture
    tasks, compute = ({"key": name, "type": "PARAM"} for name in ("log2_n_tasks", "log10_compute_flops"))
    ability, memory = ({"key": name, "type": "METRIC"} for name in ("ability", "memory"))
    has_reward = "reward" in study.axes.arm
    charts = [
        _chart("answer", "SCATTER", "ability by tasks", xaxis=tasks, yaxis=ability),
        _chart("answer", "SCATTER", "ability by compute", xaxis=compute, yaxis=ability),
        _chart("answer", "SCATTER", "memory by tasks", xaxis=tasks, yaxis=memory),
        _chart("answer", "SCATTER", "memory by compute", xaxis=compute, yaxis=memory),
        _line(f"held_out/{skill}/ability"),
        *([_line(f"held_out/{skill}/right")] if cast(Family, study.family).ability_of == "right" else []),
        _line(f"seen/{mixture}/memory"),
        _line("train/loss_nats"),
        _line("train/learning_rate"),
        *([_line(f"reward/{name}") for name in ("right", "entropy_nats", "tokens")] if has_reward else []),
    ]
    colours = f"From light to dark: {number(study.budgets[0])} to {number(study.budgets[-1])} FLOPs"
    named = {"answer": f"Ability ({skill}) and memory. {colours}", "training": "Training"}
    opened = [_section(uuid, name, True) for uuid, name in named.items()]
    skills, of_text = cast(Family, study.family).skills, cast(Family, study.family).ability_of == "right"
    splits = tuple(reversed(SPLITS)) if of_text else ("held_out", "seen")
    others = [
        *(f"{split}/{name}" for name in skills for split in splits),
        *(["reward"] if has_reward else []),
        "train",
        "trial_cost",
        "trials",
    ]
    closed = [_section(name, name, False) for name in (*others, "K_A", "K_M", "Model metrics", "System metrics")]
    sections = {"compareRunSections": opened + closed, "isAccordionReordered": True}
    return sections | {"compareRunCharts": charts}


def _section(uuid: str, name: str, is_open: bool) -> dict[str, Any]:
    layout = {"columns": 2, "cardHeight": 360}
    return layout | {"uuid": uuid, "name": name, "display": is_open, "isReordered": True, "deleted": False}


def _chart(section: str, kind: str, name: str, **settings: Any) -> dict[str, Any]:
    common = {"uuid": name, "type": kind, "metricSectionId": section, "runsCountToCompare": 100}
    return common | {"deleted": False, "isGenerated": False} | settings


def _line(metric: str) -> dict[str, Any]:
    settings = {"metricKey": metric, "selectedMetricKeys": [metric], "xAxisKey": "step", "lineSmoothness": 0}
    return _chart("training", "LINE", metric, **settings, scaleType="linear", xAxisScaleType="linear")
