"""How things are shown: `notebook()`, the first line of every notebook, and `served()`, the page around a dashboard.

Panel and HoloViews fetch their JavaScript from a content delivery network unless told otherwise, and where there is
none a notebook's cell stays blank without a word. So the network is asked first, for at most a second; where it does
not answer, the JavaScript goes into the notebook itself (7 MB, which stripping the outputs removes). A served page
brings its own and asks nobody.
"""

from __future__ import annotations

import html
import logging
import os
import threading
import urllib.request
from collections.abc import Sequence
from urllib.parse import urlencode

import holoviews as hv
import panel as pn

from workbench import __version__
from workbench.errors import WorkbenchError

log = logging.getLogger(__name__)


def notebook() -> None:
    """Load Panel and HoloViews into this notebook and say in one line where their JavaScript comes from.

    WORKBENCH_OFFLINE=1 skips the question and uses no network; WORKBENCH_OFFLINE=0 uses it without asking.
    """
    offline = is_offline()
    pn.extension(inline=offline)
    hv.extension("bokeh", inline=offline, logo=False)                   # after Panel's, which it would set back
    where = "is stored in this notebook" if offline else "comes from the network"
    print(f"workbench {__version__}, {'offline' if offline else 'online'}: the plots' JavaScript {where}.")


def is_offline() -> bool:
    """True where WORKBENCH_OFFLINE says so or, where it is not set, where the network does not answer in a second."""
    said = os.environ.get("WORKBENCH_OFFLINE", "").strip().lower()
    return said not in ("0", "false", "no") if said else not _answers()


def _answers(seconds: float = 1.0) -> bool:
    from panel.io.resources import CDN_DIST

    answered = []

    def ask():
        request = urllib.request.Request(CDN_DIST + "panel.min.js", method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=seconds) as answer:
                answered.append(answer.status < 400)
        except (OSError, ValueError):
            answered.append(False)

    # In a thread, because looking up the address may hang for longer than any timeout of the request.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(seconds)
    return any(answered)


def served(title: str, view: type, state: Sequence[str] = ()) -> pn.viewable.Viewable:
    """The page of a dashboard: `view(session)` for the recording that the address names, and a choice of recordings.

    The address holds `data`, a catalog name or a path, and the parameters of the view listed in `state`; they are
    written back as they change, so that a copied address shows the same view. What cannot be shown is said in an alert.
    """
    from workbench.catalog import open_catalog, open_recording

    location, alerts = pn.state.location, pn.Column(sizing_mode="stretch_width")
    asked = {key: values[-1].decode() for key, values in pn.state.session_args.items()}
    body = pn.Column(sizing_mode="stretch_width", min_height=300, loading=True)
    catalog = open_catalog()
    names = [name for dataset in catalog for name in _recordings(catalog, dataset)]
    name = asked.get("data") or names[0]
    choice = pn.widgets.Select(name="Recording", options=list(dict.fromkeys([name, *names])), value=name, width=440)
    home = pn.pane.HTML('<a href="?" style="color:#0072b2">All dashboards</a>', visible="app" in asked, margin=(0, 10))

    def complain(error: Exception) -> None:
        if not isinstance(error, WorkbenchError):
            log.exception("the page could not be built")
        sentence = str(error) if isinstance(error, WorkbenchError) else f"{type(error).__name__}: {error}"
        alerts.append(pn.pane.Alert(html.escape(sentence), alert_type="danger", sizing_mode="stretch_width"))

    def show(name: str, wanted: dict[str, str]) -> None:
        body.loading = True
        alerts.clear()
        try:
            session = open_recording(name)
            try:
                viewer = view(session, recording=name, **{key: _parsed(view, key, wanted[key]) for key in wanted})
            except WorkbenchError as error:
                complain(error)
                viewer = view(session, recording=name)
            body[:] = [viewer]

            def remember(*_) -> None:
                location.update_query(data=name, **{key: _written(getattr(viewer, key)) for key in state})

            viewer.param.watch(remember, list(state))
            remember()
        except Exception as error:                                      # an exception here would leave an empty page
            body.clear()
            complain(error)
        finally:
            body.loading = False

    choice.param.watch(lambda event: show(event.new, {}), "value")
    pn.state.onload(lambda: show(name, {key: asked[key] for key in state if key in asked}))
    return page(title, home, choice, alerts, body)


def page(title: str, *content) -> pn.viewable.Viewable:
    """The frame of every served page; it asks no other host for anything."""
    import panel_material_ui as pmui

    return pmui.Page(title=f"{title} · spike workbench",
                     main=[pn.Column(*content, sizing_mode="stretch_width", margin=12)],
                     theme_config={"palette": {"primary": {"main": "#0072b2"}}})


def address(**query) -> str:
    """The part of an address after the path: `?app=raster&data=reach-sim`."""
    return "?" + urlencode(query)


def _recordings(catalog, dataset: str) -> list[str]:
    """The names that open the recordings of a dataset."""
    sessions = catalog.sessions(dataset)
    return [f"{dataset}/{session}" for session in sessions] if len(sessions) > 1 else [dataset]


def _parsed(view: type, key: str, text: str):
    """What the address says about one parameter of a view."""
    kind = type(view.param[key]).__name__
    if kind == "ListSelector":
        return [part for part in text.split(",") if part]
    if kind != "Range":
        return text
    if not text:
        return None
    try:
        start, stop = (float(part) for part in text.split(","))
    except ValueError:
        raise WorkbenchError(f"the address says {key}={text!r}; write two numbers of seconds, as {key}=10,20") from None
    return start, stop


def _written(value) -> str:
    if isinstance(value, list | tuple):
        return ",".join(f"{part:.6g}" if isinstance(part, float) else str(part) for part in value)
    return "" if value is None else str(value)
