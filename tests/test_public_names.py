"""Public names are promises: one that changes or goes fails here, and is changed knowingly, with a line in CHANGELOG.

Public is what docs/ documents: every function, class, method, field and constant without an underscore in a module
without one, with its arguments and their defaults, as the source says them; what `workbench` itself offers; and what is
written on the command line and in recipes. `tests/public_names.txt` is the list. To renew it, when that is meant:

    python -m tests.test_public_names
"""

from __future__ import annotations

import argparse
import ast
import difflib
import re
from collections.abc import Iterator
from pathlib import Path

import workbench
from docs.rooms import modules
from workbench import models
from workbench.__main__ import _parser
from workbench.training import sweep
from workbench.training.recipe import Recipe

LIST = Path(__file__).with_name("public_names.txt")


def public_names() -> list[str]:
    lines = [f"workbench.{name}" for name in workbench.__all__]
    for module, path in modules().items():
        if "._" not in module:
            lines += _of(ast.parse(path.read_text(encoding="utf-8")), module)
    commands = next(a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction)).choices
    lines += [f"python -m workbench {name}: " + " ".join(a.option_strings[-1] if a.option_strings else a.dest
                                                         for a in own._actions) for name, own in commands.items()]
    return [*lines, f"models: {' '.join(sorted(models._MODELS))}", f"recipes: {' '.join(sorted(Recipe.available()))}",
            f"experiments: {' '.join(sorted(sweep.available()))}"]


def _of(body: ast.Module | ast.ClassDef, where: str) -> Iterator[str]:
    fields = [name for node in body.body for name in _assigned(node) if not name.startswith("_")]
    if fields:
        yield f"{where}: {' '.join(dict.fromkeys(fields))}"
    for node in body.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            kinds = [ast.unparse(d) for d in node.decorator_list]
            field = any(kind.rpartition(".")[2].startswith(("property", "cached_property")) for kind in kinds)
            yield f"{where}.{node.name}" + ("" if field else _signature(node, isinstance(body, ast.ClassDef)
                                                                        and "staticmethod" not in kinds))
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            start = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
            yield f"class {where}.{node.name}{_signature(start, True) if start else ''}"
            yield from _of(node, f"{where}.{node.name}")


def _assigned(node: ast.stmt) -> list[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]


def _signature(function: ast.FunctionDef | ast.AsyncFunctionDef, bound: bool) -> str:
    """Arguments and defaults, without annotations and without `self`."""
    args = function.args
    for one in (*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg, args.kwarg):
        if one is not None:
            one.annotation = None
    if bound and args.args:
        args.args = args.args[1:]
    return f"({ast.unparse(args)})"


def test_no_public_name_has_changed():
    kept, found = LIST.read_text(encoding="utf-8").splitlines(), public_names()
    changes = [line for line in difflib.unified_diff(kept, found, lineterm="", n=0) if line[0] in "+-"][2:]
    assert not changes, ("public names have changed; if that is meant, run `python -m tests.test_public_names` and say "
                         "it in CHANGELOG.md:\n" + "\n".join(changes))


def test_the_list_holds_what_the_workbench_offers():
    listed = LIST.read_text(encoding="utf-8")
    for name in workbench._PLACES:
        assert re.search(rf"^(class )?workbench\.[\w.]+\.{name}\b", listed, re.M), name


def test_a_renamed_argument_is_seen():
    before, after = (list(_of(ast.parse(f"def fit(x, {name}=3, *, y: int = 0): pass"), "m")) for name in ("k", "steps"))
    assert before == ["m.fit(x, k=3, *, y=0)"] != after


if __name__ == "__main__":
    LIST.write_text("\n".join(public_names()) + "\n", encoding="utf-8")
