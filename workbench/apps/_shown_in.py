"""What is chosen here, in the other dashboards: links on a page of the hub, where each is told the same choice.

    session, run, moments, units → the dashboards that can show them, and how each is told → HTML
"""

from __future__ import annotations

import html
from contextlib import suppress

import panel as pn

from workbench.apps._example import EXAMPLE
from workbench.apps._run_facts import openers, recipe_of, reports
from workbench.catalog import check
from workbench.display import LINK, address
from workbench.errors import WorkbenchError
from workbench.training import storage
from workbench.training.run import Run, runs


def shown_in(but: str, data: str, session: str, moments: str, units: str = "", run: str = "") -> str:
    """HTML that leads from the dashboard `but` to the others, with the same moments and units.

    data: what opens the recording, or its id in the run; session: its id; run: the folder of the model, or the example;
    "" for none. Other runs of the recording are looked for beside it. "" where there is no hub around, or nothing is
    chosen.
    """
    if not (moments or units) or "app" not in (pn.state.session_args or {}):
        return ""
    chosen = {key: value for key, value in (("moments", moments), ("chosen_units", units)) if value}
    trained = str(storage.place(run)) if run and run != EXAMPLE else ""
    folder = storage.place(trained).parent if trained else storage.place("runs")
    own = _of(trained, session)
    told = {name: {**where, **chosen} for name, where in _of_runs(session, run, trained, folder).items()}
    if "latents" in told:
        told["latents"]["chosen_in"] = session
    data = own.get("data", data)
    with suppress(WorkbenchError):                                      # an id that nothing but its run opens
        check(data)
        told["raster"] = {"data": data, **({"run": trained} if own else {}), **chosen}
        if moments:
            told["masking"] = {"data": data, "start": moments.split(":")[0],
                               **({"run": trained} if "masking" in own.get("opens", ()) else {})}
    for report in reports(folder) if moments else ():
        if session in (storage.read_json(report / "items.json") or {}).get("session", ()):
            told["gallery"] = {"folder": str(report), "moments": moments, "chosen_in": session}
    links = [f'<a href="{html.escape(address(app=name, **where))}" style="{LINK}">{name}</a>'
             for name, where in sorted(told.items()) if name != but]
    return "<b>Show what is chosen in</b> " + " · ".join(links) if links else ""


def _of_runs(session: str, run: str, trained: str, folder) -> dict[str, dict[str, str]]:
    """The dashboards of a model that has seen this recording: the run itself first, then the newest in the folder."""
    if run == EXAMPLE:
        return {name: {"run": EXAMPLE} for name in ("latents", "attribution")}
    found: dict[str, dict[str, str]] = {}
    for place in [*[trained] * bool(trained), *runs(folder).index]:
        for name in {"latents", "attribution"} & {*_of(place, session).get("opens", ())} - {*found}:
            found[name] = {"run": place, "session": session}
    return found


def _of(place: str, session: str) -> dict:
    """Of a run that has seen the session: the dashboards that open it, and what opens the recording, where it is told.
    Empty for any other, and for a saved model, which does not say what it has seen."""
    recipe = recipe_of(place) if place else None
    seen = recipe and (storage.read_json(storage.place(place) / "resolved.json") or {}).get("recordings", ())
    ids = [each["id"] for each in seen or ()]
    if session not in ids:
        return {}
    with suppress(WorkbenchError):                                      # deleted meanwhile
        named = [recipe.data] if isinstance(recipe.data, str) else recipe.data
        told = {"data": named[ids.index(session)]} if len(named) == len(ids) else {}
        return {"opens": openers(Run(place)), **told}
    return {}
