"""The rooms of the house and who imports whom, read from the source with `ast`: nothing is imported.

    workbench/*.py ─► imports ─► arrows between rooms ─► drawing.py, the pages of the rooms, the rules that tests hold
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Room(NamedTuple):
    """A package of that name, or the `modules` beside the packages that belong together."""

    title: str
    says: str
    modules: tuple[str, ...] = ()


ROOMS = {                                                               # from left to right, as data flows
    "data": Room("Session & data", "A recording as flat, sorted arrays; datasets by name; the windows of them that are "
                 "trained and scored on; batches and masks.",
                 ("session", "catalog", "windows", "splits", "batch", "masking", "align", "binning", "conditions",
                  "quality", "selection", "validity", "catalog_file", "cache", "places", "files", "errors")),
    "sources": Room("Sources", "Where recordings come from: one file a format or dataset, each turning files into "
                    "sessions; simulated ones too."),
    "nn": Room("Parts of models", "What two or more models share: layers, losses and metrics.", ("losses", "metrics")),
    "models": Room("Models", "One file a system, each read like the method section of its paper."),
    "images": Room("Images", "Pictures that were shown: embedders, generators, metrics, reconstruction from spikes."),
    "training": Room("Training", "Recipes, runs that outlive what started them, sweeps, adaptation, the command line.",
                     ("__main__",)),
    "analysis": Room("Analysis", "Probes, latents, forecasts, attribution, comparisons: what notebooks and dashboards "
                     "compute with."),
    "apps": Room("Dashboards", "One dashboard a file, the same object in a cell and in the browser.",
                 ("display", "grids", "colors")),
}


class Import(NamedTuple):
    importer: str
    imported: str                                                       # a module of the workbench, or "torch"
    later: bool                                                         # in a function, or for type checkers only


def room_of(module: str) -> str:
    """The room that a module of the workbench belongs to; "" for the package itself, which is the door to all."""
    parts = module.split(".")[1:]
    if not parts:
        return ""
    for name, room in ROOMS.items():
        if parts[0] in (name, *room.modules):
            return name
    raise LookupError(f"{module} belongs to no room; add it to ROOMS of docs/rooms.py")


def modules(package: Path = ROOT / "workbench") -> dict[str, Path]:
    """Module name → file, of everything in a package that can be imported."""
    files = sorted(path for path in package.rglob("*.py") if "scripts" not in path.parts)
    return {".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__"): path
            for path in files}


def imports(package: Path = ROOT / "workbench") -> list[Import]:
    """Every import of every module, wherever it stands in the file."""
    known = modules(package)
    doors = _lazy(known[package.name])
    found = set()
    for module, path in known.items():
        is_package = path.name == "__init__.py"
        for node, later in _walk(ast.parse(path.read_text(encoding="utf-8"))):
            for name in _names(node, module, is_package):
                name = doors.get(name, name)
                while name.startswith(f"{package.name}.") and name not in known:
                    name = name.rpartition(".")[0]                      # a class or function: its module
                name = name if name in known else name.split(".")[0]
                if name != module:
                    found.add(Import(module, name, later))
    now = {(i.importer, i.imported) for i in found if not i.later}
    return sorted(i for i in found if not i.later or (i.importer, i.imported) not in now)


def arrows(found: Iterable[Import]) -> dict[tuple[str, str], list[Import]]:
    """(room, room that it imports from) → the imports, between different rooms of the workbench."""
    between: dict[tuple[str, str], list[Import]] = {}
    for one in found:
        if one.imported.split(".")[0] == one.importer.split(".")[0]:
            pair = room_of(one.importer), room_of(one.imported)
            if all(pair) and pair[0] != pair[1]:
                between.setdefault(pair, []).append(one)
    return between


def reached(found: Iterable[Import], module: str) -> set[str]:
    """All that importing a module imports, over however many steps; not what its functions import when called."""
    next_to: dict[str, set[str]] = {}
    for one in found:
        if not one.later:
            next_to.setdefault(one.importer, set()).add(one.imported)
    seen, waiting = set(), [module]
    while waiting:
        for name in next_to.get(waiting.pop(), ()):
            if name not in seen:
                seen.add(name)
                waiting.append(name)
    return seen


def _walk(node: ast.AST, later: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    for child in ast.iter_child_nodes(node):
        yield child, later
        lazy = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        yield from _walk(child, later or lazy or typing)


def _names(node: ast.AST, module: str, is_package: bool) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    here = module.split(".")
    base = here[:len(here) - node.level + is_package] if node.level else []
    return [".".join([*base, *([node.module] if node.module else []), alias.name]) for alias in node.names]


def _lazy(init: Path) -> dict[str, str]:
    """What `workbench.__init__` looks up on first use: workbench.Session → workbench.session."""
    for node in ast.parse(init.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_PLACES":
            return {f"workbench.{name}": place for name, place in ast.literal_eval(node.value).items()}
    return {}
