"""Spike workbench: models of neural spikes, side by side, on your own recording.

    catalog → Session → windows → SpikeBatch → model → Run
"""

from importlib import import_module

__version__ = "0.1.0"

# Looked up on first use: reading a catalog, a session or a run must not import torch or Panel.
_PLACES = {
    "Session": "workbench.session",
    "Series": "workbench.session",
    "open_catalog": "workbench.catalog",
    "SpikeBatch": "workbench.batch",
    "Recipe": "workbench.training.recipe",
    "Run": "workbench.training.run",
    "launch": "workbench.training.run",
    "runs": "workbench.training.run",
    "adapt": "workbench.training.adaptation",
    "compare": "workbench.analysis.comparison",
    "sweep": "workbench.training.sweep",
    "notebook": "workbench.display",
    "WorkbenchError": "workbench.errors",
}
__all__ = sorted([*_PLACES, "models"])


def __getattr__(name: str):
    if name == "models":
        return import_module("workbench.models")
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'workbench' has no attribute {name!r}")


def __dir__():
    return [*globals(), *__all__]
