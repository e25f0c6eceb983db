"""Where recordings come from: one file a format or dataset, each turning its files into `Session`s.

    LOADERS   the names that `loader:` of the catalog may have → the module whose `read(path, **options)` is called
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

LOADERS = {
    "allen": "workbench.sources.allen",
    "falcon": "workbench.sources.falcon",
    "nlb": "workbench.sources.nlb",
    "nwb": "workbench.sources.nwb",
    "tvsd": "workbench.sources.tvsd",
}


def reader(name: str) -> Callable:
    """The `read(path, **options) -> Session` of a loader, imported now."""
    return import_module(LOADERS[name]).read


def read_beside(name: str, path: Path) -> list[Path]:
    """What else a loader reads for the recording at `path`, where it is there: its module's `beside`, if it has one."""
    return getattr(import_module(LOADERS[name]), "beside", lambda path: [])(path)
