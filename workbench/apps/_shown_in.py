"""What is chosen here, in the other dashboards: links on a page of the hub, code in a cell.

    session, run, moments, units → the dashboards that can show them, and how each is told → HTML
"""

from __future__ import annotations

import html
from pathlib import Path

import panel as pn

from workbench.apps._example import EXAMPLE
from workbench.apps._run_facts import opened_by, openers, reports
from workbench.display import LINK, address
from workbench.training import storage
from workbench.training.run import Run


def shown_in(but: str, data: str, session: str, moments: str, units: str = "", run: str = "") -> str:
    """HTML that leads from the dashboard `but` to the others, with the same moments and units.

    data: what opens the recording; session: its id; run: the folder of the model, or the example; "" for none. Other
    runs of the recording are looked for beside it. "" where there is no hub around, or nothing is chosen.
    """
    if not (moments or units) or "app" not in (pn.state.session_args or {}):
        return ""
    chosen = {key: value for key, value in (("moments", moments), ("chosen_units", units)) if value}
    trained = run if run != EXAMPLE else ""
    folder = Path(trained).parent if trained else Path("runs")
    told = {"raster": {"data": data, **({"run": trained} if trained else {}), **chosen}}
    told |= {name: {**where, **chosen} for name, where in _of_runs(session, run, folder).items()}
    if "latents" in told:
        told["latents"]["chosen_in"] = session
    if moments:
        told["masking"] = {"data": data, "start": moments.split(":")[0]}
        if trained and "masking" in openers(Run(trained)):
            told["masking"]["run"] = trained
        for report in reports(folder):
            if session in (storage.read_json(report / "items.json") or {}).get("session", ()):
                told["gallery"] = {"folder": str(report), "moments": moments, "chosen_in": session}
    links = [f'<a href="{html.escape(address(app=name, **where))}" style="{LINK}">{name}</a>'
             for name, where in sorted(told.items()) if name != but]
    return "<b>Show what is chosen in</b> " + " · ".join(links)


def _of_runs(session: str, run: str, folder: Path) -> dict[str, dict[str, str]]:
    """The dashboards of a model that has seen this recording: the run itself first, then the newest in the folder."""
    if run == EXAMPLE:
        return {name: {"run": EXAMPLE} for name in ("latents", "attribution")}
    found: dict[str, dict[str, str]] = {}
    for name in ("latents", "attribution"):
        can = opened_by(name, folder)
        for place in [run] * (run in can) + can:
            known = (storage.read_json(storage.place(place) / "resolved.json") or {}).get("recordings", ())
            if name not in found and any(each["id"] == session for each in known):
                found[name] = {"run": place, "session": session}
    return found
