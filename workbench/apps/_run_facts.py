"""What is said of a run: where it is, how fast it goes, what went wrong, and which dashboards open its model.

    status.json, the newest metrics row, resolved.json → facts, one sentence where something is wrong
    recipe.yaml, model/ → dashboards → links on a served page, code in a cell
"""

from __future__ import annotations

import html
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from workbench.apps._run_curves import COLORS, OTHER, Curves
from workbench.display import ALERT, LINK, ink
from workbench.errors import WorkbenchError
from workbench.training import storage
from workbench.training.group import Group
from workbench.training.recipe import Recipe
from workbench.training.run import Run, runs

_STATES = {"finished": "#007a5a", "running": "#0072b2", "queued": "#0072b2", "stopped": "#a86400", None: "#b00020"}
NAMED = 4                                                               # recordings
# What the dashboards ask of a model, by name because reading a model's class takes torch; a test asks them all.
MOMENTS = {"poyo", "gru", "mlp", "ndt1", "stndt", "ndt2", "cebra", "possm", "lfads", "ldns", "mtm", "neds", "poyo_plus",
           "capoyo", "neuroformer", "neurobridge", "neurobridge_decoder", "neurobridge_pictures", "neurohorizon"}
FILLS = {"ndt1", "stndt", "ndt2", "mtm", "neds", "lfads", "ldns", "neurobridge"}


def ink_of(state: str | None) -> str:
    """The colour of a state, as text."""
    return ink(_STATES.get(state, _STATES[None]))


def recipe_of(place: str | Path) -> Recipe | None:
    """The recipe of a run's folder, read once; None of several runs, and of a file that is none."""
    path = storage.place(place) / "recipe.yaml"
    try:
        return _recipe(str(place), path.stat().st_mtime_ns if storage.local(path) else 0)
    except OSError:
        return None


@lru_cache(1024)
def _recipe(place: str, written: int) -> Recipe | None:
    try:
        return Recipe.load(storage.place(place) / "recipe.yaml")
    except WorkbenchError:
        return None


def facts(run: Run, state: str, curves: Curves) -> list[str]:
    """What a single run is and how it goes, as pieces of HTML."""
    recipe, status, newest = recipe_of(run.path) or run.recipe, run.status, curves.newest             # or says why not
    step, alive = status.get("step") or 0, state in ("running", "queued")
    names = [Path(name).name for name in ([recipe.data] if isinstance(recipe.data, str) else recipe.data)]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    said = [html.escape(f"{recipe.model.name} on {', '.join(names[:NAMED])}{more}")]
    if alive:
        said.append(html.escape(status.get("stage", "starting")))
    if step:
        said.append(f"step {step:,} of {recipe.budget.steps:,}")
    elif state == "finished":
        said.append("solved at once, without steps")
    if status.get("spikes_per_s") and state == "running":
        said.append(f"{status['spikes_per_s']:,.0f} spikes/s")
    if newest.get("data_wait") is not None:
        said.append(f"{100 * newest['data_wait']:.0f} % of a step waits for data")
    if newest.get("memory_gb") is not None:
        resolved = storage.read_json(run.path / "resolved.json") or {}
        gpu = str(resolved.get("device")).startswith("cuda")
        said.append(f"{newest['memory_gb']:.2f} GB of {'the GPU, at most' if gpu else 'memory'}")
    if status.get("valid") is not None:
        said.append(f"best validation {html.escape(str(status['valid_name']))} {status['valid']:.3f}")
    return said + [f"<span style='color:{ink(COLORS.get(n, OTHER))}'>held-out R² of {html.escape(n)} {r2:.3f}</span>"
                   for n, r2 in curves.dashed.items()]


def wrong(run: Run, curves: Curves) -> str:
    """What went wrong, in a sentence; empty where nothing did."""
    if run.error:
        return run.error
    if curves.lost_at is not None:
        return (f"The loss is no number since step {curves.lost_at:,}: stop the run and start a new one with a lower "
                "optim.lr or optim.clip")
    return ""


def red(sentence: str) -> str:
    """The sentence as HTML that is seen; nothing of none."""
    return f'<div role="alert" style="{ALERT}">{html.escape(sentence)}</div>' if sentence else ""


def unsaid(table: str) -> str:
    """HTML without the word "state": nbclient, which executes saved notebooks, fails over a message that holds it."""
    return table.replace("state", "st&#97;te")


def has_conditions(place: str | Path) -> bool:
    """Whether it is a run with weights of a model that forecasts from conditions."""
    recipe = recipe_of(place)
    return recipe is not None and bool(recipe.model.settings.get("conditions")) and (
        storage.place(place) / "model").is_dir()


def openers(run: Run) -> dict[str, dict[str, str]]:
    """The dashboards that can open what the run has made, and how each is told which: name → {key in an address: …}."""
    place, recipe, found = run.path, recipe_of(run.path), {}
    if not isinstance(run, Group) and recipe is not None and (place / "model").is_dir():
        asks = {"latents": recipe.model.name in MOMENTS, "masking": recipe.model.name in FILLS,
                "attribution": has_conditions(place)}
        found = {name: {"run": str(place)} for name, can in asks.items() if can}
    if reports(place):
        found["gallery"] = {"folder": str(place)}
    return found


def opened_by(dashboard: str, folder: str | Path) -> list[str]:
    """The runs in a folder that the dashboard can open, newest first."""
    found = []
    for path in runs(folder).index:
        with suppress(WorkbenchError):                                  # deleted meanwhile, or damaged: `runs` says it
            found += [path] * (dashboard in openers(Run(path)))
    return found


def reports(place: Path) -> list[Path]:
    """The saved reconstructions at a place: itself, those in it, those in the folders in it."""
    found = (each.parent for depth in ("", "*/", "*/*/") for each in place.glob(f"{depth}pictures.npz"))
    return sorted(folder for folder in found if (folder / "report.json").is_file())


def opening(run: Run, link: Callable[..., str] | None) -> str:
    """HTML that leads to those dashboards: by `link`(dashboard, **what it is told) → address, else by code."""
    found = openers(run)
    if not found:
        return ""
    if link:
        return "Open this checkpoint in " + " · ".join(
            f'<a href="{html.escape(link(name, **told))}" style="{LINK}">{name}</a>'
            for name, told in found.items())
    code = "\n\n".join(_code(name, *told.values(), run) for name, told in found.items())
    return (f"<details><summary>Open this checkpoint in {', '.join(found)}</summary>"
            f'<pre style="white-space:pre-wrap;overflow-wrap:anywhere">{html.escape(code)}</pre></details>')


def _code(name: str, place: str, run: Run) -> str:
    """The cell that opens one of them."""
    view = f"from workbench.apps.{name} import {name.title()}\n"
    if name != "masking":
        return f"{view}{name.title()}({place!r})"
    data = run.recipe.data
    return (f"{view}from workbench.catalog import open_recording\n"
            f"Masking(open_recording({data if isinstance(data, str) else data[0]!r}), {place!r})")
