"""The README's pictures: the hub and every dashboard, as a browser without a network shows them. `make pictures`.

    recipes → runs/pictures/NAME, once → panel serve workbench/apps/ → headless Chromium → docs/pictures/NAME.png

Everything in them is simulated and says so; the networks are small ones, trained for a few minutes.
`python docs/pictures.py raster hub` takes some of them again.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from workbench.display import address
from workbench.training.launching import launch
from workbench.training.recipe import Recipe
from workbench.training.run import Run

ROOT = Path(__file__).resolve().parents[1]
OUT, RUNS = ROOT / "docs" / "pictures", "runs/pictures"
WIDTH, MOST = 1200, 200_000                                             # pixels; bytes of a picture
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run", "--hide-scrollbars"]
SMALL = {"dim": 32, "width": 64, "depth": 2, "heads": 4, "latents": 2}
# Trained here, the last first in the table of runs: name → recipe.
TRAINED = {
    "masked": Recipe.preset("neurobridge").with_(
        model=SMALL, optim={"warmup": 50, "ema": 0.98}, budget={"steps": 1500, "eval_every": 250}),
    "gru": Recipe.preset("gru").with_(budget={"steps": 400, "eval_every": 100}),
    "poyo": Recipe.preset("demo").with_(budget={"steps": 600, "eval_every": 150}),
}
# Folders as seen from this one, which is another on every computer.
SHORTEN = """root => {
    const visit = node => {
        if (node.nodeType === Node.TEXT_NODE && node.data.includes(root)) node.data = node.data.replaceAll(root, "")
        if (node.shadowRoot) visit(node.shadowRoot)
        node.childNodes.forEach(visit)
    }
    visit(document.body)
}"""


class Picture(NamedTuple):
    """asks: what the address says. says: a text that is there once all is drawn. height: pixels. do: what a hand does
    before the picture is taken."""

    asks: dict[str, str]
    says: str
    height: int
    do: Callable = lambda page: None


def lasso(page) -> None:
    """A box around part of the cloud of moments, with the tool for it."""
    page.locator('[title="Box Select"]').first.click()
    box = page.locator(".bk-Figure").first.bounding_box()
    at = lambda x, y: (box["x"] + x * box["width"], box["y"] + y * box["height"])
    page.mouse.move(*at(0.16, 0.12))
    page.mouse.down()
    page.mouse.move(*at(0.25, 0.50), steps=5)
    page.mouse.move(*at(0.36, 0.85), steps=5)
    page.mouse.up()
    page.mouse.move(5, 5)
    page.locator("text=laid end to end").or_(page.locator("text=the raster shows")).first.wait_for()


def folded(page) -> None:
    """The table of scores closed, so that there is room for pictures."""
    page.locator("text=Every score, with").click()


def decoded(page) -> None:
    """The decoder's traces, on time that it has not seen."""
    page.get_by_role("button", name="Show decoded traces").click()
    page.locator("text=which no training has seen").wait_for(timeout=420_000)
    page.wait_for_timeout(1500)


PICTURES = {
    "hub": Picture({"folder": RUNS}, "Recordings", 720),
    "raster": Picture({"app": "raster", "data": "reach-sim", "sort": "region", "color": "depth", "window": "100,115"},
                      "100.00 to 115.00 s", 1090),
    "masking": Picture({"app": "masking", "data": "reach-sim", "run": f"{RUNS}/masked", "mode": "neuron",
                        "ratio": "0.4"}, "filled in by neurobridge", 1080),
    "latents": Picture({"app": "latents", "run": f"{RUNS}/masked", "folder": RUNS, "color": "hand_vel.speed"},
                       "told from the points", 1270, lasso),
    "attribution": Picture({"app": "attribution", "run": "example", "folder": RUNS, "region": "PLAN"},
                           "Integrated gradients of the log-likelihood", 845),
    "gallery": Picture({"app": "gallery", "folder": RUNS}, "page 1 of", 1200, folded),
    "runs": Picture({"app": "runs", "folder": RUNS}, "Open this checkpoint in", 1250, decoded),
}


def trained() -> None:
    """The runs that the pictures show, those of the last call where they are there."""
    for name, recipe in TRAINED.items():
        folder = ROOT / RUNS / name
        if (folder / "recipe.yaml").is_file() and Run(folder).recipe != recipe.anchored():
            shutil.rmtree(folder)
        print(f"trained in {RUNS}/{name}, if it is not there …", flush=True)
        (Run(folder) if folder.exists() and Run(folder).alive else launch(recipe, run=folder)).wait()


@contextmanager
def served() -> Iterator[str]:
    """The address of the hub, with nobody's own recordings in it."""
    env = {key: value for key, value in os.environ.items() if key not in ("WORKBENCH_CATALOG", "WORKBENCH_DATA")}
    command = [sys.executable, "-m", "panel", "serve", "workbench/apps/", "--port", "0"]
    server = subprocess.Popen(command, cwd=ROOT, env=env | {"WORKBENCH_CACHE": str(ROOT / RUNS / "cache")}, text=True,
                              stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        said = []
        for line in server.stderr:
            said.append(line)
            if found := re.search(r"running at: (http://localhost:\d+/\w*)", line):
                threading.Thread(target=server.stderr.read, daemon=True).start()        # or it would wait for a reader
                yield found[1]
                return
        raise SystemExit("panel serve ended:\n" + "".join(said))
    finally:
        server.kill()


@contextmanager
def browser() -> Iterator:
    """A Chromium with a wide page."""
    from playwright.sync_api import sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    path = os.environ.get("WORKBENCH_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=QUIET)
        yield opened.new_page(viewport={"width": WIDTH, "height": 1000})
        opened.close()


def take(page, hub: str, picture: Picture) -> bytes:
    """A dashboard, once it is drawn, as a PNG."""
    page.set_viewport_size({"width": WIDTH, "height": picture.height})
    page.goto(hub + address(**picture.asks), timeout=120_000)
    page.locator(f"text={picture.says}").first.wait_for(timeout=420_000)
    page.wait_for_timeout(2500)                                         # plots are drawn after their texts
    picture.do(page)
    page.wait_for_timeout(1500)
    alerts = page.get_by_role("alert").all_inner_texts()
    if alerts:
        raise SystemExit(f"pictures: the page at {address(**picture.asks)} says: {alerts[0]}")
    page.evaluate(SHORTEN, f"{ROOT}{os.sep}")
    return page.screenshot(animations="disabled")


def small(shot: bytes) -> bytes:
    """The picture with as many colours as its size leaves room for."""
    image = Image.open(io.BytesIO(shot)).convert("RGB")
    for colors in (None, 256, 128, 64, 32):
        told, shown = io.BytesIO(), image
        if colors:
            shown = image.quantize(colors, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        shown.save(told, "PNG", optimize=True)
        if told.tell() <= MOST:
            return told.getvalue()
    raise SystemExit(f"pictures: a picture of {image.width} × {image.height} pixels is more than {MOST / 1e3:.0f} kB")


def main(asked: list[str]) -> None:
    """Take the pictures asked for, all without a name."""
    if unknown := set(asked) - set(PICTURES):
        raise SystemExit(f"pictures: there is no {', '.join(unknown)}; there are {', '.join(PICTURES)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))               # so that the server ends too
    trained()
    OUT.mkdir(exist_ok=True)
    with served() as hub, browser() as page:
        for name in asked or PICTURES:
            picture = small(take(page, hub, PICTURES[name]))
            (OUT / f"{name}.png").write_bytes(picture)
            print(f"docs/pictures/{name}.png, {len(picture) / 1e3:.0f} kB", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
