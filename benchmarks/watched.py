"""The raster as a person sees it: seconds from the turn of a wheel to the new picture, in headless Chromium.

A session of 450,000 spikes with all that lies beneath it, and one of ten million, from a file, on a page that
`panel serve` serves. The clock is the page's own: from the event of the wheel to the frame that is painted after the
line above the picture, which comes with it, has changed. Drawing is done in software, as on a computer without a GPU.
"""

import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading

from benchmarks.raster import make

TURNS = 8
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# The line is in a shadow tree, which is watched from its own root.
WATCH = """line => {
    window.turned = window.seen = 0
    document.addEventListener("wheel", () => { window.turned = performance.now() }, {capture: true, passive: true})
    new MutationObserver(() => requestAnimationFrame(() => setTimeout(() => { window.seen = performance.now() })))
        .observe(line.getRootNode(), {subtree: true, childList: true, characterData: true})
}"""


def main() -> dict[str, float]:
    """Print the median and the slowest redraw of each; returns the medians."""
    browser = os.environ.get("WORKBENCH_CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        print("\nno Chromium found: redraws are not watched (set WORKBENCH_CHROMIUM)")
        return {}
    with tempfile.TemporaryDirectory() as folder:
        many = make(10_000_000, f"{folder}/many.h5")
        env = {**os.environ, "WORKBENCH_CACHE": folder, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        server = subprocess.Popen([sys.executable, "-m", "panel", "serve", "workbench/apps/", "--port", "0"],
                                  stderr=subprocess.PIPE, text=True, env=env)
        try:
            said, address = [], None
            while address is None:
                said.append(server.stderr.readline())
                assert said[-1], "panel serve ended:\n" + "".join(said)
                address = re.search(r"running at: (http://localhost:\d+)/", said[-1])
            threading.Thread(target=lambda: [None for _ in server.stderr], daemon=True).start()
            return _watched(browser, f"{address[1]}/apps?app=raster&data=", {
                "450,000 spikes, all strips": "reach-sim", "10,000,000 spikes": many})
        finally:
            server.terminate()
            server.wait()


def _watched(browser: str, address: str, recordings: dict[str, str]) -> dict[str, float]:
    from playwright.sync_api import sync_playwright

    found = {}
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        page = chromium.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(120_000)
        for name, data in recordings.items():
            page.goto(address + data)
            line = page.locator("text=spikes in view").first
            line.wait_for()
            page.wait_for_timeout(4000)
            box = page.locator(".bk-Figure").first.bounding_box()
            page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
            page.wait_for_timeout(1000)
            line.evaluate(WATCH)
            took = []
            for turn in range(TURNS):
                page.evaluate("window.seen = 0")
                page.mouse.wheel(0, -240 if turn < TURNS / 2 else 240)
                page.wait_for_function("window.seen > 0")
                took.append(page.evaluate("window.seen - window.turned") / 1000)
                page.wait_for_timeout(1000)
            found[name] = statistics.median(took)
            print(f"\n{name}, from the wheel to the new picture: median {found[name]:.2f} s, slowest {max(took):.2f} s")
        chromium.close()
    return found
