"""Loads matplotlib without what the surroundings name for it: a notebook's backend may not be installed here, and ends the import.

`plates.drawing` sees to the settings of a matplotlibrc.
"""

import os

_kept = {name: os.environ.pop(name) for name in ("MPLBACKEND", "MATPLOTLIBRC") if name in os.environ}
try:
    import matplotlib  # noqa: F401
finally:
    os.environ.update(_kept)
