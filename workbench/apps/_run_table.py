"""The table of the runs on view: how far each is, and the settings in which their recipes differ. A row chooses a run.

    folders of runs → recipe.yaml, status.json of each → state, step, score, dotted keys that differ → rows
"""

from __future__ import annotations

import html
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import panel as pn

from workbench.apps._run_facts import ink_of, recipe_of, unsaid
from workbench.apps._tiles import Tiles
from workbench.errors import WorkbenchError
from workbench.training.group import Group
from workbench.training.recipe import Recipe
from workbench.training.run import ENDED, Run

MOST = 8                                                                # settings that have a column
UNIT, UNIT_SAID = re.compile(r"_(ms|s)$"), r" (\1)"                     # at the end of a column's name


class RunTable(pn.viewable.Viewer):
    """choose: called with the folder of the row that was clicked. going: whether a run was on its way at the last look.
    """

    def __init__(self, choose: Callable[[str], None], **params):
        super().__init__(**params)
        self.places, self.going = [], False
        self._rows = Tiles(visible=False, max_height=250, styles={"overflow": "auto"})
        self._rows.param.watch(lambda event: choose(self.places[event.new]) if event.new >= 0 else None, "chosen")

    def __panel__(self) -> pn.viewable.Viewable:
        return self._rows

    def show(self, places: Sequence[str], chosen: str | None) -> None:
        """The rows of these folders as they are now, where there are several; `chosen` is the one on view."""
        rows, recipes = {}, {}
        for place in places:
            try:
                run = Run(place)
                rows[place], recipes[place] = _row(run), None if isinstance(run, Group) else recipe_of(place)
            except (WorkbenchError, OSError, KeyError, ValueError):     # gone, or of another program
                continue
        self.going = any(row[0] not in ENDED for row in rows.values())
        keys, values = differences({place: recipe for place, recipe in recipes.items() if recipe is not None})
        names = _short(list(rows))
        body = [[name, *row, *(values.get(place, {}).get(key, "") for key in keys[:MOST])]
                for name, (place, row) in zip(names, rows.items(), strict=True)]
        more = (f"{len(keys) - MOST} more settings differ: <code>Run(…).recipe.diff(Run(…).recipe)</code>"
                if len(keys) > MOST else "")
        self.places = list(rows)
        self._rows.param.update(
            content=_table(["run", "state", "step", "validation", *keys[:MOST]], body, more), visible=len(rows) > 1,
            chosen=self.places.index(chosen) if chosen in rows else -1)


def _short(places: Sequence[str]) -> list[str]:
    """The folders as seen from the one that holds them all, if one does."""
    try:
        above = os.path.commonpath([os.path.dirname(place) for place in places])
        return [os.path.relpath(place, above) for place in places]
    except ValueError:                                                  # none at all, or some on a disk and some not
        return list(places)


def _table(names: Sequence[str], rows: Sequence[Sequence[str]], below: str) -> str:
    cell = lambda text: f"<td>{html.escape(text)}</td>"
    body = "".join(
        f'<tr class="row" data-item="{i}" tabindex="0"><td><b>{html.escape(run)}</b></td>'
        f'<td style="color:{ink_of(state)}">{state}</td>{"".join(map(cell, others))}</tr>'
        for i, (run, state, *others) in enumerate(rows))
    return unsaid(f"<table><tr>{''.join(map(cell, names))}</tr>{body}</table><p class='faint'>{below}</p>")


def measured(table: pd.DataFrame) -> str:
    """What several runs as one have measured, one row a run, as HTML; an empty column is left out, as units are said
    in the heads and a run by its folder's name."""
    table = table.dropna(axis=1, how="all").reset_index()
    head = "".join(f"<th>{html.escape(UNIT.sub(UNIT_SAID, name))}</th>" for name in table)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(_said(name, value))}</td>' for name, value in row.items())}</tr>"
                   for row in table.to_dict("records"))
    return unsaid(f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>')


def _said(name: str, value: Any) -> str:
    if isinstance(value, str | bool):
        return Path(value).name if name == "run" else str(value)
    return "" if pd.isna(value) else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def differences(recipes: dict[str, Recipe]) -> tuple[list[str], dict[str, dict[str, str]]]:
    """The settings in which recipes differ, those that all of them have first, and label → {setting: its value}."""
    if len(recipes) < 2:
        return [], {}
    first = next(iter(recipes.values()))
    diffs = {label: first.diff(recipe) for label, recipe in recipes.items()}
    own = {key: here for diff in diffs.values() for key, (here, _) in diff.items() if key != "name"}
    values = {label: {key: diff[key][1] if key in diff else here for key, here in own.items()}
              for label, diff in diffs.items()}
    lacking = {key: sum(each[key] is None for each in values.values()) for key in own}
    keys = sorted(own, key=lambda key: (key != "model.name", lacking[key]))
    return keys, {label: {key: _text(key, value) for key, value in each.items()} for label, each in values.items()}


def _text(key: str, value: Any) -> str:
    parts = value if isinstance(value, list | tuple) else ["–" if value is None else value]
    text = ", ".join(Path(part).name if key == "data" else str(part) for part in parts)
    return text if len(text) <= 40 else f"{text[:39]}…"


def _row(run: Run) -> tuple[str, str, str]:
    """State, step and validation score, as text."""
    if isinstance(run, Group):
        of = len(run.plan["runs"])
        return run.state, f"{of - len(run.left)} of {of} runs", ""
    status = run.status
    step, steps, score = (status.get(key) for key in ("step", "steps", "valid"))
    return (run.state, f"{step:,} of {steps:,}" if step and steps else "",
            "" if score is None else f"{status['valid_name']} {score:.3f}")
