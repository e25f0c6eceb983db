"""Where recordings come from: one file a format or dataset, each turning its files into `Session`s.

    LOADERS   the names that `loader:` of the catalog may have → the module whose `read(path, **options)` is called
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

LOADERS = {
    "alf": "workbench.sources.alf",
    "allen": "workbench.sources.allen",
    "falcon": "workbench.sources.falcon",
    "ibl": "workbench.sources.ibl",
    "mat": "workbench.sources.mat",
    "nlb": "workbench.sources.nlb",
    "nwb": "workbench.sources.nwb",
    "phy": "workbench.sources.phy",
    "tvsd": "workbench.sources.tvsd",
}

FOLDERS = ("phy", "alf")                                                # loaders of recordings that are folders


def reader(name: str) -> Callable:
    """The `read(path, **options) -> Session` of a loader, imported now."""
    return import_module(LOADERS[name]).read


def read_beside(name: str, path: Path) -> list[Path]:
    """What else a loader reads for the recording at `path`, where it is there: its module's `beside`, if it has one."""
    return getattr(import_module(LOADERS[name]), "beside", lambda path: [])(path)


def folder_loader(path: Path) -> str | None:
    """The loader that knows a folder by what is in it: 'phy' or 'alf'; None where it is neither, or no folder."""
    if not path.is_dir():
        return None
    return next((name for name in FOLDERS if import_module(LOADERS[name]).recognises(path)), None)
