"""A real browser for the dashboards. Its tests skip, saying so, where there is none."""

import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.apps.browsing import forget_pages

ROOT = Path(__file__).resolve().parents[2]
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-gpu-compositing", "--disable-software-rasterizer",
         "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
HERE = re.compile(r"^(data:|blob:|about:|(http|ws)s?://(127\.0\.0\.1|localhost)[:/])")


@pytest.fixture(autouse=True)
def nobody_is_served():
    """A test is not on the page of one before it."""
    forget_pages()


@pytest.fixture(scope="session")
def browser():
    sync = pytest.importorskip("playwright.sync_api")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    path = os.environ.get("WORKBENCH_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    with sync.sync_playwright() as playwright:
        path = path or playwright.chromium.executable_path
        if not Path(path).exists():
            pytest.skip("no Chromium found (set WORKBENCH_CHROMIUM, or run `playwright install chromium`)")
        opened = playwright.chromium.launch(executable_path=path, args=QUIET)
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def tab(browser):
    """One tab for all tests: a new one compiles the dashboards' JavaScript anew, which takes longer than a test."""
    return browser.new_page(viewport={"width": 1200, "height": 1000})


@pytest.fixture
def page(tab):
    """An empty page that fails its test on an error, in the console too, or a request to any other computer."""
    tab.set_default_timeout(120_000)
    wrong = []
    listening = {"pageerror": lambda error: wrong.append(f"error on the page: {error}"),
                 "console": lambda said: said.type == "error" and wrong.append(
                     f"error in the console: {said.text} ({said.location['url']})"),
                 "request": lambda request: HERE.match(request.url) or wrong.append(f"asked for {request.url}")}
    for event, listener in listening.items():
        tab.on(event, listener)
    yield tab
    tab.goto("about:blank")
    for event, listener in listening.items():
        tab.remove_listener(event, listener)
    assert not wrong


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    """`panel serve ARGUMENTS` from the repository's root: a function that returns the server's address."""
    running = []

    def start(*arguments: str) -> str:
        home = tmp_path_factory.mktemp("home")
        env = {**os.environ, "WORKBENCH_CACHE": str(home), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m", "panel", "serve", *arguments, "--port", "0"]
        server = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                                  text=True)
        running.append(server)
        said = []
        for line in server.stderr:
            said.append(line)
            found = re.search(r"running at: (http://localhost:\d+)/", line)
            if found:
                threading.Thread(target=lambda: [None for _ in server.stderr], daemon=True).start()
                return found[1]
        raise AssertionError("panel serve ended:\n" + "".join(said))

    yield start
    for server in running:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:                               # it is computing for a visitor
            server.kill()


@pytest.fixture(scope="session")
def hub(served) -> str:
    """The address of the hub, by the literal command of the README."""
    return served("workbench/apps/")
