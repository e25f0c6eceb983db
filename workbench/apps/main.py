"""The hub: all dashboards, the newest runs, every recording of the catalog. `panel serve workbench/apps/` opens it.

A dashboard is one line of `DASHBOARDS`. The address `?app=raster&data=reach-sim` opens it on a recording; without
`app` the hub shows its tiles. `folder=` says where runs lie, `runs` by default.
"""

import html
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import panel as pn

from workbench.apps import attribution, gallery, latents, masking, raster, runs
from workbench.apps._run_facts import ink_of, openers
from workbench.catalog import open_catalog
from workbench.display import LINK, address, alert, built, page
from workbench.errors import UnknownName, WorkbenchError
from workbench.places import cache_folder
from workbench.training.group import Group
from workbench.training.run import Run
from workbench.training.run import runs as runs_in

DASHBOARDS = {                                                          # name → title, what it shows, its page
    "raster": ("Raster", "Every spike of a recording, with trials and behaviour on the same time axis.", raster.app),
    "latents": ("Latents", "What a model knows at every moment, as a cloud; choose points, see their spikes, trials.",
                latents.app),
    "masking": ("Masking", "What a mask hides of a window, what fills it in, and how good that is.", masking.app),
    "attribution": ("Attribution", "What each modality is worth to a forecast, to which region, when in the trial.",
                    attribution.app),
    "gallery": ("Gallery", "Pictures that were shown beside those made from spikes, and beside what needs no spikes.",
                gallery.app),
    "runs": ("Runs", "Training runs as they go: what differs, curves, baselines, sessions; stop, resume.", runs.app),
}
OF_A_RECORDING = ("raster", "masking")                                  # those that `data=` makes sense for
NEWEST = 6                                                              # runs that are listed
HEAD = '<div style="font-size:18px;font-weight:600;margin:0 0 6px">{}</div>'
FAINT = '<p style="font-size:13px;opacity:.75;margin:4px 0 26px;line-height:1.5">{}</p>'


def app() -> pn.viewable.Viewable:
    """The dashboard that the address asks for, or the hub."""
    asked = pn.state.session_args.get("app")
    name = asked[-1].decode() if asked else ""
    if name in DASHBOARDS:
        return built(DASHBOARDS[name][0], DASHBOARDS[name][2])
    alerts = [alert(UnknownName("dashboard", name, DASHBOARDS))] if name else []
    try:
        recordings = _recordings()
    except WorkbenchError as error:                                     # a mistake in a catalog file
        alerts, recordings = [*alerts, alert(error)], ""
    folder = pn.state.session_args.get("folder", [b"runs"])[-1].decode()
    content = pn.pane.HTML(_tiles() + _newest(folder) + recordings, sizing_mode="stretch_width")
    return page("Dashboards", *alerts, content)


def _tiles() -> str:
    tiles = "".join(
        f'<a href="{address(app=name)}" style="display:block;padding:18px 20px;border:1px solid #8885;'
        f'border-radius:10px;text-decoration:none;color:inherit"><div style="font-size:18px;font-weight:600;'
        f'{LINK};margin-bottom:6px">{title}</div><div style="font-size:14px;line-height:1.45">{says}</div></a>'
        for name, (title, says, _) in DASHBOARDS.items())
    columns = "display:grid;grid-template-columns:repeat(auto-fill,minmax(340px,1fr));gap:16px"
    return f'<div style="{columns};margin:8px 0 28px">{tiles}</div>'


def _newest(folder: str) -> str:
    """The newest runs in a folder: how they stand, and what opens them."""
    found, rows = runs_in(folder), []
    for path, run in found.head(NEWEST).iterrows():
        what, counted = run["model"], "step {:,} of {:,}"
        try:
            links = {"runs": {"run": path}} | openers(one := Run(path))
            if isinstance(one, Group):
                what, counted = f"{run['recipe']} of {what or 'finished runs'}", "{:,} of {:,} runs"
        except WorkbenchError:                                          # not readable, which its state says
            links = {"runs": {"folder": folder}}
        step = counted.format(run["step"], run["steps"]) if pd.notna(run["step"]) and run["step"] else ""
        valid = f"{html.escape(str(run['valid_name']))} {run['valid']:.3f}" if pd.notna(run["valid"]) else ""
        about = f"{what}{' on ' * bool(run['data'])}{run['data']}" if pd.notna(what) else str(run["error"])
        rows.append([f"<b>{html.escape(Path(path).name)}</b>",
                     f'<span style="color:{ink_of(run["state"])}">{html.escape(str(run["state"]))}'
                     "</span>", html.escape(about), step, valid,
                     " · ".join(_link(name, **where) for name, where in links.items())])
    place = html.escape(str(Path(folder).expanduser().resolve()))
    if not rows:
        says = f"No runs yet in <code>{place}</code>. <code>python -m workbench train demo</code> makes the first."
    else:
        all_ = _link("runs", "all of them", folder=folder)
        says = f"{len(rows)} of {len(found):,} runs in <code>{place}</code> · {all_}"
    return HEAD.format("Newest runs") + _table(rows) + FAINT.format(says)


def _health(catalog, here: int) -> str:
    """How many recordings open without a network, where files are looked for, and how much room there is."""
    place = cache_folder("")
    held = sum(map(_size, place.rglob("*"))) if place.is_dir() else 0
    parent = next(folder for folder in (place, *place.parents) if folder.is_dir())
    own = os.environ.get("WORKBENCH_CATALOG")
    return (f"{here} of {len(catalog)} open without a network · downloads and conversions: {held / 1e9:.2f} GB in "
            f"<code>{html.escape(str(place))}</code>, {shutil.disk_usage(parent).free / 1e9:,.0f} GB free"
            f"{f' · also from <code>{html.escape(own)}</code>' if own else ''}")


def _size(file: Path) -> int:
    try:
        return file.stat().st_size if file.is_file() else 0
    except OSError:                                                     # moved to its place meanwhile
        return 0


def _link(app: str, says: str = "", **where: str) -> str:
    return f'<a href="{html.escape(address(app=app, **where))}" style="{LINK}">{says or DASHBOARDS[app][0]}</a>'


def _table(rows: Sequence[Sequence[str]]) -> str:
    cell = '<td style="padding:5px 28px 5px 0;white-space:nowrap">{}</td>'.format
    cells = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return f'<div style="overflow-x:auto"><table style="font-size:14px;border-collapse:collapse">{cells}</table></div>'


def _recordings() -> str:
    catalog, rows, here = open_catalog(), [], 0
    for name, dataset in catalog.items():
        available = catalog.available(name)
        here += available
        links = " · ".join(_link(each, data=name) for each in OF_A_RECORDING) if available else "not here"
        size = dataset.size_gb or 0
        about = f"{size:,.1f} GB" if size >= 1 else f"{1e3 * size:,.0f} MB" if size else "simulated" * dataset.simulated
        told = (f"<b>{html.escape(name)}</b>", links, about, html.escape(dataset.title), html.escape(dataset.license))
        rows.append((not available, told))
    rows = [row for _, row in sorted(rows, key=lambda each: each[0])]   # those that open come first
    own = ("<code>python -m workbench prepare NAME</code> fetches one that is not here; it says how large it is first. "
           "Your own: add <code>data=</code> and the path of a file to the address of a dashboard, or name it in a "
           "catalog that <code>WORKBENCH_CATALOG</code> lists.")
    return HEAD.format("Recordings") + _table(rows) + FAINT.format(f"{_health(catalog, here)}<br>{own}")


if pn.state.served:
    built("Dashboards", app).servable(title="spike workbench")
