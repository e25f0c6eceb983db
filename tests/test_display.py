"""`workbench.notebook()` decides where JavaScript comes from, and says so."""

import http.server
import threading
import time

import pytest

import workbench
from workbench import display


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
    monkeypatch.setattr("panel.io.resources.CDN_DIST", f"http://127.0.0.1:{server.server_port}/")
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
    workbench.notebook()
    assert inline == [said == "1"] * 2                                  # HoloViews alone would go back to the network
    (line,) = capsys.readouterr().out.splitlines()
    assert ("is stored in this notebook" if said == "1" else "comes from the network") in line


def test_state_survives_the_address():
    from workbench.apps.raster import Raster
    views = [("window", (1.5, 2.25)), ("window", None), ("series", ["a", "b"]), ("series", []), ("sort", "rate")]
    for key, value in views:
        assert display._parsed(Raster, key, display._written(value)) == value
