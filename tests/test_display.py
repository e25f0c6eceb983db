"""`workbench.notebook()` decides where JavaScript comes from, and says so."""

import http.server
import threading
import time

import panel as pn
import pytest
from bokeh.document import Document
from bokeh.models import ImportedStyleSheet, UIElement
from panel.io.resources import set_resource_mode
from pyviz_comms import Comm

import workbench
from workbench import display
from workbench.errors import WorkbenchError


def _refuse():
    raise OSError


@pytest.mark.parametrize(("said", "offline"), [("1", True), ("yes", True), ("0", False), ("false", False)])
def test_the_environment_decides_without_asking_the_network(monkeypatch, said, offline):
    monkeypatch.setenv("WORKBENCH_OFFLINE", said)
    monkeypatch.setattr(display, "_answers", lambda: pytest.fail("asked the network"))
    assert display.is_offline() is offline


def test_a_network_that_answers_is_used_and_one_that_does_not_is_not(monkeypatch):
    monkeypatch.delenv("WORKBENCH_OFFLINE", raising=False)

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(display, "CDN_DIST", f"http://127.0.0.1:{server.server_port}/")
    assert display.is_offline() is False
    server.shutdown()
    server.server_close()
    assert display.is_offline() is True


def test_a_network_that_hangs_costs_about_a_second(monkeypatch):
    monkeypatch.delenv("WORKBENCH_OFFLINE", raising=False)
    hang = threading.Event()
    monkeypatch.setattr(display.urllib.request, "urlopen", lambda *a, **k: hang.wait(20) and _refuse())
    begun = time.monotonic()
    assert display.is_offline() is True
    assert time.monotonic() - begun < 3
    hang.set()


@pytest.mark.parametrize("said", ["1", "0"])
def test_notebook_says_in_one_line_where_the_javascript_comes_from(monkeypatch, capsys, said):
    monkeypatch.setenv("WORKBENCH_OFFLINE", said)
    inline = []
    monkeypatch.setattr(display.pn, "extension", lambda **k: inline.append(k["inline"]))
    monkeypatch.setattr(display.hv, "extension", lambda *a, **k: inline.append(k["inline"]))
    monkeypatch.setattr(pn.viewable.Viewable, "_preprocessing_hooks", [])
    workbench.notebook()
    assert inline == [said == "1"] * 2                                  # HoloViews alone would go back to the network
    (line,) = capsys.readouterr().out.splitlines()
    assert ("is stored in this notebook" if said == "1" else "comes from the network") in line


@pytest.mark.parametrize(("kernel", "loaded", "loads"), [(True, False, 1), (True, True, 0), (False, False, 0)])
def test_a_dashboard_in_a_cell_loads_what_it_needs_if_nobody_did(monkeypatch, kernel, loaded, loads):
    class Nothing(display.Dashboard):
        def __panel__(self):
            return pn.Column()

    calls = []
    monkeypatch.setattr(display, "notebook", lambda: calls.append(1))
    monkeypatch.setattr(display, "in_kernel", lambda: kernel)
    monkeypatch.setattr(pn.extension, "_loaded", loaded)
    monkeypatch.setattr(pn.viewable.Viewer, "_repr_mimebundle_", lambda *_: ({}, {}))
    Nothing()._repr_mimebundle_()
    assert len(calls) == loads


def addresses(root) -> list[str]:
    """Of the style sheets that a browser would fetch."""
    return [sheet.url for model in root.select({"type": UIElement}) for sheet in model.stylesheets
            if isinstance(sheet, ImportedStyleSheet)]


def test_offline_a_notebook_fetches_no_style_sheet_now_or_later(monkeypatch):
    monkeypatch.setattr(pn.config, "inline", True)
    monkeypatch.setattr(pn.viewable.Viewable, "_preprocessing_hooks",
                        [*pn.viewable.Viewable._preprocessing_hooks, display._store_style_sheets])
    text, column = display.Text("before"), pn.Column()
    column.append(text)
    with set_resource_mode("inline"):                                   # as Panel shows what a cell ends with
        root = column.get_root(Document(), Comm())
    assert any(model.stylesheets for model in root.select({"type": UIElement})) and not addresses(root)
    text.object = "after"
    assert not addresses(root)


def test_a_sentence_of_an_alert_is_text_and_not_html():
    assert "&lt;b&gt;" in display.alert("no unit <b>").object
    assert "no unit" in display.alert(WorkbenchError("no unit")).object
    assert "WorkbenchError" not in display.alert(WorkbenchError("no unit")).object
    assert "ValueError: odd" in display.alert(ValueError("odd")).object


def test_state_survives_the_address():
    from workbench.apps.raster import Raster
    views = [("window", (1.5, 2.25)), ("window", None), ("series", ["a", "b"]), ("series", []), ("sort", "rate")]
    for key, value in views:
        assert display._parsed(Raster, key, display._written(value)) == value
