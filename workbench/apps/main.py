"""The hub: every dashboard and every recording of the catalog on one page. `panel serve workbench/apps/` opens it.

A dashboard is one line of `DASHBOARDS`. The address `?app=raster&data=reach-sim` opens it on a recording; without
`app` the hub shows its tiles.
"""

import html

import panel as pn

from workbench.apps import attribution, gallery, latents, masking, raster, runs
from workbench.catalog import open_catalog
from workbench.display import address, alert, page
from workbench.errors import UnknownName, WorkbenchError

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


def app() -> pn.viewable.Viewable:
    """The dashboard that the address asks for, or the hub."""
    asked = pn.state.session_args.get("app")
    name = asked[-1].decode() if asked else ""
    if name in DASHBOARDS:
        return DASHBOARDS[name][2]()
    alerts = [alert(UnknownName("dashboard", name, DASHBOARDS))] if name else []
    try:
        recordings = _recordings()
    except WorkbenchError as error:                                     # a mistake in a catalog file
        alerts, recordings = [*alerts, alert(error)], ""
    return page("Dashboards", *alerts, pn.pane.HTML(_tiles() + recordings, sizing_mode="stretch_width"))


def _tiles() -> str:
    tiles = "".join(
        f'<a href="{address(app=name)}" style="display:block;width:300px;padding:18px 20px;border:1px solid #8885;'
        f'border-radius:10px;text-decoration:none;color:inherit"><div style="font-size:18px;font-weight:600;'
        f'color:#0072b2;margin-bottom:6px">{title}</div><div style="font-size:14px;line-height:1.45">{says}</div></a>'
        for name, (title, says, _) in DASHBOARDS.items())
    return f'<div style="display:flex;flex-wrap:wrap;gap:16px;margin:8px 0 28px">{tiles}</div>'


def _recordings() -> str:
    catalog, rows = open_catalog(), []
    for name, dataset in catalog.items():
        links = " · ".join(f'<a href="{html.escape(address(app=app, data=name))}" style="color:#0072b2">'
                           f"{DASHBOARDS[app][0]}</a>" for app in OF_A_RECORDING)
        if not catalog.available(name):
            links = f"not on this computer: <code>python -m workbench prepare {html.escape(name)}</code>"
        simulated = "simulated" if dataset.simulated else ""
        cells = [f"<b>{html.escape(name)}</b>", html.escape(dataset.title), simulated, links]
        rows.append("<tr>" + "".join(f'<td style="padding:7px 28px 7px 0">{cell}</td>' for cell in cells) + "</tr>")
    return ('<div style="font-size:18px;font-weight:600;margin-bottom:6px">Recordings</div>'
            f'<table style="font-size:14px;border-collapse:collapse">{"".join(rows)}</table>'
            '<p style="font-size:13px;opacity:.75">Your own: add <code>data=</code> and the path of a file to the '
            'address of a dashboard, or name it in a catalog that <code>WORKBENCH_CATALOG</code> lists.</p>')


if pn.state.served:
    app().servable(title="spike workbench")
