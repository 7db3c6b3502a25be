"""How much it takes until something may be claimed. Imports nothing, so that a study can be checked without scipy."""

from __future__ import annotations

MIN_SCALES = 8
"""Below this many distinct scales no break is claimed."""

MIN_REPLICATES = 4
"""With fewer replicates at the scales around it no break is claimed: see `breaks.py`."""
