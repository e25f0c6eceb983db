"""How things are shown: `notebook()`, the first line of every notebook, and `served()`, the page around a dashboard.

Panel and HoloViews fetch their JavaScript from a content delivery network unless told otherwise, and where there is
none a notebook's cell stays blank without a word. So the network is asked first, for at most a second; where it does
not answer, the JavaScript and the style sheets go into the notebook itself (7 MB, which stripping the outputs removes).
A served page brings its own and asks nobody. A `Dashboard` in a cell calls `notebook()` itself where nobody did.
"""

from __future__ import annotations

import html
import logging
import math
import os
import sys
import threading
import urllib.request
from collections.abc import Callable, Sequence
from functools import cache
from urllib.parse import urlencode

import holoviews as hv
import panel as pn
from bokeh.models import ImportedStyleSheet, UIElement
from bokeh.themes import Theme
from panel.io.resources import CDN_DIST, DIST_DIR

from workbench import __version__
from workbench.errors import WorkbenchError

log = logging.getLogger(__name__)

ALERT = ("background:#fdecea;color:#611a15;border-left:5px solid #b00020;border-radius:4px;padding:12px 16px;"
         "font-size:14px;line-height:1.45;overflow-wrap:anywhere")
_FONT, _FAINT = "Roboto, Helvetica, Arial, sans-serif", "#8a8a8a"
# The figures of a page. What is named here is as it says, or as Bokeh has it; the browser would else paint it dark on a
# dark page, and leave the data as they are.
_FIGURES = Theme(json={"attrs": {
    "Plot": {"outline_line_color": None}, "Grid": {"grid_line_color": "#e5e5e5"},
    "Axis": {"axis_line_color": _FAINT, "major_tick_line_color": _FAINT, "minor_tick_line_color": None,
             "axis_label_text_font": _FONT, "axis_label_text_font_style": "normal", "major_label_text_font": _FONT},
    "Title": {"text_font": _FONT, "text_font_style": "normal"}, "Legend": {"label_text_font": _FONT},
    "ColorBar": {"major_label_text_font": _FONT, "title_text_font": _FONT}}})


def ink(color: str) -> str:
    """A colour for text: darker on a light page, lighter on a dark one.

    It is mixed with the page's own variable, because a browser does not mix anew with `currentColor` when that changes.
    """
    return f"color-mix(in srgb, {color} 70%, var(--panel-on-background-color, currentColor))"


LINK = f"color:{ink('#0072b2')}"                                        # the style of one
NUMBERS = {"Number": (1, "a number, as {}=0.5"), "Integer": (1, "a number, as {}=1"),                   # in an address
           "Range": (2, "two numbers of seconds, as {}=10,20"), "NumericTuple": (4, "four numbers, as {}=0.2,0.4,8,20")}


def notebook() -> None:
    """Load Panel and HoloViews into this notebook and say in one line where their JavaScript comes from.

    WORKBENCH_OFFLINE=1 skips the question and uses no network; WORKBENCH_OFFLINE=0 uses it without asking.
    """
    offline = is_offline()
    hooks = pn.viewable.Viewable._preprocessing_hooks
    if _store_style_sheets not in hooks:
        hooks.append(_store_style_sheets)
    pn.extension(inline=offline)
    hv.extension("bokeh", inline=offline, logo=False)                   # after Panel's, which it would set back
    where = "is stored in this notebook" if offline else "comes from the network"
    print(f"workbench {__version__}, {'offline' if offline else 'online'}: the plots' JavaScript {where}.")


class Dashboard(pn.viewable.Viewer):
    """A view that is the last line of a cell, a served page, or what a test builds."""

    def _repr_mimebundle_(self, include=None, exclude=None):
        if in_kernel() and not pn.extension._loaded:                    # else Panel would show a warning and no plot
            notebook()
        return super()._repr_mimebundle_(include, exclude)

    def as_code(self, *names: str) -> pn.Card:
        """A closed card with the cell that makes this view, `self.code()`, written anew as these parameters change
        while it is open: closed it would cost the browser more than the view itself."""
        card = pn.Card(title="As code", collapsed=True, sizing_mode="stretch_width", margin=(8, 10))
        written = lambda: f"<pre style='white-space:pre-wrap'>{html.escape(self.code())}</pre>"
        said = Text(written(), sizing_mode="stretch_width")
        card.append(said)

        def write(*_) -> None:
            if not card.collapsed:
                said.object = written()

        card.param.watch(write, "collapsed")
        self.param.watch(write, list(names))
        return card


class Text(pn.pane.HTML):
    """HTML that changes. Panel's own sends its style sheets again with every change, even offline by their addresses on
    the network."""

    priority = 0                                                        # never Panel's choice for an object

    def _update(self, ref, model):
        properties = self._get_properties(model.document)
        model.update(**{key: value for key, value in properties.items() if key != "stylesheets"})


def in_kernel() -> bool:
    """Whether this is a Jupyter kernel, whose cells can show a dashboard."""
    ask = getattr(sys.modules.get("IPython"), "get_ipython", None)  # half imported by another thread
    return getattr(ask and ask(), "kernel", None) is not None


def _store_style_sheets(viewable, root, changed=None, old_models=None) -> None:
    """Offline, put into the notebook the style sheets that Panel leaves on the network: those of plots shown by
    HoloViews, and of whatever is added to a dashboard after it was shown."""
    if not pn.config.inline or (root.document and root.document.session_context):
        return
    for model in root.select({"type": UIElement}):
        sheets = [_stored(sheet) if isinstance(sheet, ImportedStyleSheet) else sheet for sheet in model.stylesheets]
        if any(a is not b for a, b in zip(sheets, model.stylesheets, strict=True)):
            model.stylesheets = sheets


def _stored(sheet: ImportedStyleSheet) -> ImportedStyleSheet | str:
    path = DIST_DIR / sheet.url.split("?")[0].removeprefix(CDN_DIST)
    return _text(path) if sheet.url.startswith(CDN_DIST) and path.is_file() else sheet


@cache
def _text(path) -> str:
    return path.read_text(encoding="utf-8")


def is_offline() -> bool:
    """True where WORKBENCH_OFFLINE says so or, where it is not set, where the network does not answer in a second."""
    said = os.environ.get("WORKBENCH_OFFLINE", "").strip().lower()
    return said not in ("0", "false", "no") if said else not _answers()


def _answers(seconds: float = 1.0) -> bool:
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

    The address holds `data` (or `session`), a catalog name or a path, and the parameters of the view listed in `state`;
    they are written back as they change, so that a copied address shows the same view. An address that names a `run`
    alone means its first recording. What cannot be shown is said in an alert.
    """
    from workbench.catalog import open_catalog, open_recording

    location, alerts = pn.state.location, pn.Column(sizing_mode="stretch_width")
    asked = {key: values[-1].decode() for key, values in pn.state.session_args.items()}
    body = pn.Column(sizing_mode="stretch_width", min_height=300, loading=True)
    try:
        catalog = open_catalog()
        names = [name for dataset in catalog for name in _recordings(catalog, dataset)]
    except WorkbenchError as error:
        return page(title, home(), alert(error))
    name = asked.get("data") or asked.get("session") or _recording_of(asked.get("run")) or names[0]
    choice = pn.widgets.Select(label="Recordings on this computer", options=list(dict.fromkeys([name, *names])),
                               value=name, sizing_mode="stretch_width", max_width=440)

    def complain(error: Exception) -> None:
        if not isinstance(error, WorkbenchError):
            log.exception("the page could not be built")
        alerts.append(alert(error))

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
    return page(title, home(), choice, alerts, body)


def alert(error: str | Exception) -> pn.pane.HTML:
    """A sentence that says what went wrong, in colours of its own: readable on a light ground and on a dark one."""
    sentence = f"{type(error).__name__}: {error}" if isinstance(error, Exception) else error
    sentence = str(error) if isinstance(error, WorkbenchError) else sentence
    return pn.pane.HTML(f'<div role="alert" style="{ALERT}">{html.escape(sentence)}</div>',
                        sizing_mode="stretch_width", margin=(5, 10))


def home() -> pn.pane.HTML:
    """The way back to the hub, on a page that the hub serves."""
    return pn.pane.HTML(f'<a href="?" style="{LINK}">All dashboards</a>', margin=(0, 10),
                        visible="app" in pn.state.session_args)


def built(title: str, app: Callable[[], pn.viewable.Viewable]) -> pn.viewable.Viewable:
    """What `app()` builds; an exception, which would leave an empty page, as its sentence."""
    import panel_material_ui  # noqa: F401  it sets Panel's design, which what is made before it would lack

    try:
        return app()
    except Exception as error:
        if not isinstance(error, WorkbenchError):
            log.exception("the page could not be built")
        return page(title, home(), alert(error))


def page(title: str, *content) -> pn.viewable.Viewable:
    """The frame of every served page: it asks no other host for anything, and is light or dark as one likes.

    Figures are on white in both, as in a cell: the colours of their data are made for that.
    """
    import panel_material_ui as pmui

    whole = pn.Column(*content, sizing_mode="stretch_width", margin=12)
    for text in whole.select(pn.pane.HTML):
        text.stylesheets = [*text.stylesheets, ":host { color: inherit; }"]     # Panel's own stays a light page's
    if pn.state.curdoc:
        pn.state.curdoc.theme = _FIGURES
    return pmui.Page(title=f"{title} · spike workbench", theme_toggle=True,
                     main=[whole],
                     theme_config={"palette": {"primary": {"main": "#0072b2"}}})


def beside(*parts: pn.viewable.Viewable, least: int = 340) -> pn.Row:
    """Parts as wide as each other, as many in a row as find room at `least` pixels each; one where there is no more."""
    return pn.Row(*parts, sizing_mode="stretch_width", styles={
        "display": "grid", "grid-template-columns": f"repeat(auto-fit, minmax(min({least}px, 100%), 1fr))"})


def bars(title: str, columns: Sequence[str], rows: dict[str, Sequence[float]], form: str = "{:.0%}",
         most: float | None = None) -> str:
    """Numbers [row, column], NaN for none, with bars under them, as HTML; below 0 in another colour.

    most: what a whole bar says; the largest number by default.
    """
    most = most or max((abs(v) for row in rows.values() for v in row if v == v), default=0) or 1

    def cell(value: float) -> str:
        said, width = (form.format(value), 100 * abs(value) / most) if value == value else ("–", 0)
        color = "#0072b2" if value >= 0 else "#d55e00"
        return (f'<td style="min-width:96px;padding-right:18px">{said}<div style="height:5px;width:{width:.0f}%;'
                f'background:{color}"></div></td>')

    head = "".join(f'<th style="text-align:left;font-weight:400;opacity:.7">{name}</th>' for name in ("", *columns))
    body = "".join(f'<tr><td style="padding-right:18px">{html.escape(str(name))}</td>{"".join(map(cell, row))}</tr>'
                   for name, row in rows.items())
    return (f'<div style="font-size:12px"><b>{title}</b><table style="margin-top:4px;border-spacing:0"><tr>{head}</tr>'
            f'{body}</table></div>')


def address(**query) -> str:
    """The part of an address after the path: `?app=raster&data=reach-sim`."""
    return "?" + urlencode(query)


def _recordings(catalog, dataset: str) -> list[str]:
    """The names that open the recordings of a dataset that are on this computer."""
    here = catalog.sessions(dataset, here=True)
    return [f"{dataset}/{session}" for session in here] if len(catalog.sessions(dataset)) > 1 else [dataset] * len(here)


def _recording_of(run: str | None) -> str:
    """What the first recording of a run is called; empty where there is no such run, which the view will say."""
    from workbench.training.run import Run

    try:
        data = Run(run).recipe.data if run else ""
    except WorkbenchError:
        return ""
    return data if isinstance(data, str) else data[0]


def _parsed(view: type, key: str, text: str):
    """What the address says about one parameter of a view."""
    kind = type(view.param[key]).__name__
    if kind == "ListSelector":
        return [part for part in text.split(",") if part]
    if kind not in NUMBERS:
        return text
    number, write = NUMBERS[kind]
    if not text and number > 1:
        return None
    try:
        numbers = tuple(float(part) for part in text.split(","))
        if len(numbers) != number or not all(map(math.isfinite, numbers)):
            raise ValueError
    except ValueError:
        raise WorkbenchError(f"the address says {key}={text!r}; write {write.format(key)}") from None
    return numbers if number > 1 else numbers[0]


def _written(value) -> str:
    if isinstance(value, list | tuple):
        return ",".join(f"{part:.6g}" if isinstance(part, float) else str(part) for part in value)
    return "" if value is None else str(value)
