"""Rendered copies of notebooks: a page that a browser without a network draws, and one sentence where a cell fails."""

import http.server
import threading
from functools import partial

import nbformat
import pytest

from docs import rendered
from tests.apps.browsing import colours


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The first notebook, rendered small."""
    out = tmp_path_factory.mktemp("rendered")
    assert rendered.main(["00", "--size", "small", "--out", str(out)]) == 0
    return out


@pytest.fixture
def address(folder):
    """The page's address, at a server that fails the test if it is asked for anything else."""
    asked = []

    class Noting(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Noting, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/00_open_a_recording.html"
        server.shutdown()
    assert set(asked) == {"/00_open_a_recording.html"}


def test_a_page_says_its_size_and_what_it_cost_and_holds_all_it_needs(folder):
    page = (folder / "00_open_a_recording.html").read_text(encoding="utf-8")
    assert "A rendered copy, at the small size" in page and "01_four_tokenizations.html" in page
    assert "<script src=" not in page and '<link rel="stylesheet"' not in page
    assert len(page) < 20e6


def test_the_plots_of_a_page_are_drawn_without_asking_anybody(address, page):
    page.goto(address)
    for number in (0, 4):                                               # a raster, and the rates
        plot = page.locator(".bk-Figure").nth(number)
        plot.wait_for()
        plot.scroll_into_view_if_needed()
        page.wait_for_timeout(1500)
        assert (colours(plot.screenshot()).min(axis=2) < 160).mean() > 0.01


def test_a_failing_cell_is_one_sentence_and_no_page(tmp_path, monkeypatch, capsys):
    cells = [nbformat.v4.new_markdown_cell("# 99 · It fails"), nbformat.v4.new_code_cell("1 / 0")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbformat.write(notebook, tmp_path / "99_fails.ipynb")
    (tmp_path / "99_fails.html").write_text("of another day")
    monkeypatch.setattr(rendered, "NOTEBOOKS", [tmp_path / "99_fails.ipynb"])
    assert rendered.main(["99", "--out", str(tmp_path)]) == 1
    told = capsys.readouterr().err.strip().splitlines()
    assert told == ["rendered: a cell of 99_fails failed: ZeroDivisionError: division by zero; no page was written"]
    assert not (tmp_path / "99_fails.html").exists()


def test_a_name_that_no_notebook_has_is_told(capsys):
    assert rendered.main(["77"]) == 2
    assert "no notebook begins with '77'" in capsys.readouterr().err
