"""The hub as Binder serves it: behind a Jupyter server that has a base address of its own."""

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.apps.browsing import colours, wait_for

ROOT = Path(__file__).resolve().parents[2]
pytest.importorskip("jupyter_server_proxy", reason="the extra `binder` is not installed")


@pytest.fixture(scope="module")
def jupyter(tmp_path_factory):
    """A Jupyter server at /user/abc/ with binder's configuration where Binder puts it; its address and its process."""
    home = tmp_path_factory.mktemp("home")
    shutil.copy(ROOT / "binder" / "jupyter_server_config.py", home)
    env = {**os.environ, "JUPYTER_CONFIG_DIR": str(home), "JUPYTER_DATA_DIR": str(home), "WORKBENCH_CACHE": str(home),
           "JUPYTER_RUNTIME_DIR": str(home), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1",
               "--IdentityProvider.token=t", "--ServerApp.base_url=/user/abc/"]
    with open(home / "log.txt", "w") as log:
        server = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)
    told = home / f"jpserver-{server.pid}.json"                         # which port it took, once it has it
    wait_for(lambda: server.poll() is not None or told.is_file(), 120)
    assert server.poll() is None, (home / "log.txt").read_text()
    root = f"http://127.0.0.1:{json.loads(told.read_text())['port']}/user/abc"
    wait_for(lambda: reached(f"{root}/api"), 120)
    yield root, psutil.Process(server.pid)
    server.terminate()
    server.wait(60)


def reached(address: str) -> str:
    try:
        with urllib.request.urlopen(address, timeout=60) as answer:
            return answer.read().decode()
    except OSError:
        return ""


def drawn(pixels: np.ndarray) -> float:
    """The share of pixels [rows, columns, 3] in the colours of spikes, which are neither grey nor pale."""
    return float((np.ptp(pixels, axis=-1) > 40).mean())


def peak_memory(process: psutil.Process) -> float:
    """GB, the most that it has had at once. `ru_maxrss` would begin with that of the process it was forked from."""
    status = Path(f"/proc/{process.pid}/status")
    if not status.is_file():
        pytest.skip("the system does not tell a process's peak memory")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 1e6


def test_the_hub_opens_in_a_tab_of_its_own_with_spikes_and_little_memory(jupyter, page):
    root, server = jupyter
    said = page.goto(f"{root}/workbench/?token=t")
    assert said.status == 200
    page.locator('a[href="?app=raster"]').click()
    page.locator("text=spikes in view").wait_for()
    assert "/user/abc/workbench/" in page.url and "data=reach-sim" in page.url
    assert page.locator("text=/[1-9][0-9,]* of [0-9,]+ spikes in view/").first.is_visible()
    wait_for(lambda: drawn(colours(page.screenshot())) > 0.05)
    hub = next(p for p in server.children() if "serve" in p.cmdline())
    peaks = [peak_memory(process) for process in (server, hub)]
    print(f"peak memory of Jupyter's server and of the hub: {peaks[0]:.2f} and {peaks[1]:.2f} GB")
    assert sum(peaks) < 1.5


def test_the_launcher_has_a_tile_for_the_dashboards(jupyter):
    root, _ = jupyter
    (entry,) = json.loads(reached(f"{root}/server-proxy/servers-info?token=t"))["server_processes"]
    assert entry["launcher_entry"]["title"] == "Dashboards" and entry["launcher_entry"]["path_info"] == "workbench/"


def test_nothing_is_served_without_the_token(jupyter):
    root, _ = jupyter
    assert "spike workbench" not in reached(f"{root}/workbench/")
