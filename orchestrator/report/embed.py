"""What the page's script is given: one JSON with the places a reader can point at, the walks, and what makes files of figures.

templates/report.js reads it. Places are pixels of their panel; runs are told once and pointed to by their index.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
from typing import Any

from markupsafe import Markup

from orchestrator.analysis.findings import Findings
from orchestrator.formatting import number
from orchestrator.report.curves import jumps, tasks_words
from orchestrator.report.plates import Point, Sheet
from orchestrator.report.walk import Walk

MAX_POINTS = 25_000
"""A page has no more places to point at (some 1.1 MB): beyond, only the ends of budgets, then only marks with words."""
MAX_WALK_VALUES = 100_000
"""Walks with more values together are not embedded (some 0.6 MB); their figures at the budgets are on the page then."""

MAX_CSV_BYTES = 400_000
"""CSVs beyond this, packed, are found beside the page only."""
DENSEST = 25
"""How many times smaller packing makes a CSV at most (measured: 5 to 20 times in base64)."""
PARTS = ("single values to point at", "files to save", "cells and boundaries to point at", "the slider along compute")
"""What a page that is still too large does without, in this order."""


class Embedded:
    """The page's data while it is collected."""

    def __init__(self, found: Findings) -> None:
        self._trunks = {(r["arm"], r["n_tasks"], r["replicate"]): r["trunk"] for r in found.runs}
        self._trials = {(r["arm"], r["n_tasks"], r["compute_flops"], r["replicate"]): r for r in found.runs}
        self._levels = found.results.levels
        self._diverged = {(r["arm"], r["n_tasks"], r["replicate"]) for r in found.runs if r["status"] == "diverged"}
        self._runs: dict[str, int] = {}
        self._told: list[list[Any]] = []
        self._sheets: list[tuple[tuple[float, float], Sheet]] = []
        self._walks: dict[str, Walk] = {}
        self._csv: dict[str, bytes] = {}
        self._frames: dict[str, str] = {}
        self.thinned = ""
        """What alone a reader can point at, in words, where that is not all."""
        self.without: tuple[str, ...] = ()
        """Of PARTS, what was given up."""

    def panel(self, box: tuple[float, float], sheet: Sheet) -> int | None:
        """Take a panel up; returns the number that the page knows it by, None where there is nothing to point at."""
        if not sheet.points and not sheet.areas:
            return None
        self._sheets.append((box, sheet))
        return len(self._sheets) - 1

    def walk(self, walk: Walk) -> None:
        """Take an arm's walk up, if it is not too large for the page."""
        so_far = [values for other in self._walks.values() for values in other.values]
        if sum(values.size for values in (*so_far, *walk.values)) <= MAX_WALK_VALUES:
            self._walks[walk.arm] = walk

    @property
    def walks(self) -> dict[str, Walk]:
        """By their arms, what the page has a slider for."""
        return {} if PARTS[3] in self.without else self._walks

    def lighten(self) -> bool:
        """Do without the next of PARTS; False where that was all."""
        self.without = PARTS[: len(self.without) + 1]
        return len(self.without) < len(PARTS)

    def files(self, name: str, csv: bytes, frame: str) -> None:
        """Take up what makes a figure's files, for readers who have the page alone: its numbers, and what is around its panels."""
        self._csv[name], self._frames[name] = csv, frame

    def json(self) -> Markup:
        """All of it, safe between <script> tags."""
        self._runs, self._told = {}, []
        panels = self._panels()
        walks = {arm: self._walk(walk) for arm, walk in self.walks.items()}
        saved = PARTS[1] not in self.without
        frames = {name: _packed(frame.encode()) for name, frame in self._frames.items()} if saved else {}
        csv = self._packed_csv() if saved else {}
        return script_json({"runs": self._told, "panels": panels, "walks": walks, "csv": csv, "frames": frames})

    def _packed_csv(self) -> dict[str, str]:
        """The CSVs in base64 of gzip, the small ones first, as far as they fit."""
        packed: dict[str, str] = {}
        left = MAX_CSV_BYTES
        for name, data in sorted(self._csv.items(), key=lambda item: (len(item[1]), item[0])):
            if len(data) > DENSEST * left:
                break  # packing tens of megabytes to find that they are too many takes seconds
            text = _packed(data)
            if len(text) <= left:
                packed[name] = text
                left -= len(text)
        return packed

    def _panels(self) -> list[dict[str, Any]]:
        total = sum(len(sheet.points) for _, sheet in self._sheets)
        ends = sum(not _on_the_way(point) for _, sheet in self._sheets for point in sheet.points)
        least = 0 if total <= MAX_POINTS else 1 if ends <= MAX_POINTS else 2
        least = 3 if PARTS[2] in self.without else 2 if PARTS[0] in self.without else least
        self.thinned = ("", "the ends of budgets", "cells and boundaries", "")[least]
        return [self._panel(box, sheet, least) for box, sheet in self._sheets]

    def _panel(self, box: tuple[float, float], sheet: Sheet, least: int) -> dict[str, Any]:
        series: dict[str, int] = {}
        kept = [i for i, p in enumerate(sheet.points) if _rank(p) >= least and all(map(math.isfinite, sheet.places[i]))]
        index = {i: k for k, i in enumerate(kept)}
        points = []
        for point, place in ((sheet.points[i], [round(v, 1) for v in sheet.places[i]]) for i in kept):
            if point.says:
                points.append([*place, point.says])
                continue
            row = point.row
            name = series.setdefault(row["series"], len(series))
            run = self._run(row["arm"], row["n_tasks"], row["replicate"], row.get("compute_flops"))
            told = [name, run, _short(row["value"]), _short(row.get("flops")), row.get("step")]
            points.append([*place, *told, point.stroke])
        strokes = [[[index[i] for i in line if i in index] for line in lines] for lines in sheet.strokes]
        return {
            "box": [round(side, 1) for side in box],
            "series": [sheet.series[name] for name in series],
            "points": points,
            "areas": [[*(round(v, 1) for v in area[:4]), area.says] for area in sheet.areas if least < 3],
            "strokes": strokes if not least else [],
        }

    def _run(self, arm: str, n_tasks: int, replicate: int, budget: float | None) -> int:
        """The index of the trial that a value is of, or of its trunk where several trials share it."""
        if budget is None:
            name = self._trunks.get((arm, n_tasks, replicate), "")
            status = "diverged" if (arm, n_tasks, replicate) in self._diverged else ""
        else:
            trial = self._trials.get((arm, n_tasks, budget, replicate))
            name, status = (trial["trial"], trial["status"]) if trial else ("", "open")
        if name not in self._runs:
            self._runs[name] = len(self._told)
            self._told.append([name, number(n_tasks), replicate, number(budget) if budget is not None else "", status])
        return self._runs[name]

    def _walk(self, walk: Walk) -> dict[str, Any]:
        def runs(budget: float | None) -> list[list[int]]:
            n = range(walk.values[0].shape[2])
            return [[self._run(walk.arm, level, r, budget) for r in n] for level in self._levels]

        trunk = runs(None)
        return {
            "levels": [number(n) for n in self._levels],
            "axis": tasks_words(self._levels),
            "jumps": jumps(self._levels),
            "low": round(walk.low, 3),
            "high": round(walk.high, 3),
            "series": [[*s.spoken, s.measure] for s in walk.series],
            "stops": [
                {
                    "flops": stop.words,
                    "step": number(stop.step),
                    "budget": stop.budget is not None,
                    "runs": trunk if stop.budget is None else runs(stop.budget),
                }
                for stop in walk.stops
            ],
            "values": [
                [[[_short(v) for v in cell] for cell in at] for at in values.tolist()] for values in walk.values
            ],
        }


def _packed(data: bytes) -> str:
    """Base64 of gzip, the same on every machine."""
    return base64.b64encode(gzip.compress(data, 9, mtime=0)).decode()


def _on_the_way(point: Point) -> bool:
    return point.row.get("phase") in ("trunk", "pre_decay")


def _rank(point: Point) -> int:
    return 2 if point.says else 0 if _on_the_way(point) else 1


def _short(value: float | None) -> float | int | None:
    """Five figures are more than a reader is shown."""
    if value is None or not math.isfinite(value):
        return None
    short = float(f"{value:.5g}")
    return int(short) if short.is_integer() else short


def script_json(data: Any) -> Markup:
    """JSON that cannot end the script it stands in, nor begin a comment there: no < or > is left in it."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)
