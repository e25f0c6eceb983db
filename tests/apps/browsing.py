"""What tests in a browser share: serving a view, waiting, and reading pixels."""

import io
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import bokeh.io.doc as bokeh_doc
import numpy as np
import panel as pn
import pytest
from bokeh.document import Document

SERVING = []                                                            # servers in threads of this process


@contextmanager
def serving(build: Callable[[], object]) -> Iterator[str]:
    """The address at which every visitor gets a view from `build`; its thread answers already."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = pn.serve(build, port=port, threaded=True, show=False, verbose=False)
    SERVING.append(server)
    try:
        wait_for(lambda: answers(port))
        yield f"http://localhost:{port}"
    finally:
        server.stop()
        server.join(60)                                                 # it may be computing for a visitor
        SERVING.remove(server)


def forget_pages() -> None:
    """Where nothing is served any more, no page is the current document.

    Bokeh's current document is one for the process, which threads write across each other: a page that is opened
    while another server answers a visitor leaves that visitor's page the current document for good.
    """
    if not SERVING:
        bokeh_doc._PATCHED_CURDOCS.clear()
        bokeh_doc.set_curdoc(Document())


def answers(port: int) -> bool:
    with socket.socket() as asking:
        return asking.connect_ex(("localhost", port)) == 0


def wait_for(happens: Callable[[], object], seconds: float = 60.0):
    """What `happens()` returns once it is true."""
    end = time.monotonic() + seconds
    while not (found := happens()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
    return found


def lasso(page, figure, *corners: tuple[float, float]) -> None:
    """Draw around what lies between corners, parts of the figure's width and height, and come back to the first."""
    box = settled(page, figure.bounding_box)                            # the page above it may still grow
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in (*corners, corners[0])]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=6)
    page.mouse.up()


def settled(page, look: Callable[[], object], seconds: float = 0.5):
    """What `look()` returns once it has returned the same for so long; a busy machine lays out and answers late."""
    found, since = look(), time.monotonic()
    while time.monotonic() - since < seconds:
        page.wait_for_timeout(100)
        if (now := look()) != found:
            found, since = now, time.monotonic()
    return found


def sideways(page, width: int) -> int:
    """Pixels that a page of the hub goes on to the right of a window of that width."""
    whole = page.viewport_size
    page.set_viewport_size({**whole, "width": width})
    beyond = settled(page, lambda: page.locator(".main-content").evaluate("e => e.scrollWidth - e.clientWidth"), 1.0)
    page.set_viewport_size(whole)
    return beyond


def colours(shot: bytes) -> np.ndarray:
    """A screenshot's pixels [rows, columns, 3]."""
    image = pytest.importorskip("PIL.Image")
    return np.asarray(image.open(io.BytesIO(shot)).convert("RGB")).astype(int)
