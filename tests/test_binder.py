"""What Binder does with this repository, as far as it can be seen without Docker and without Binder."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest
import yaml

from docs.rendered import execute
from workbench.sources.simulated import reach_sim

ROOT = Path(__file__).resolve().parent.parent
BINDER = ROOT / "binder"


def test_repo2docker_takes_every_file_of_the_folder():
    pytest.importorskip("repo2docker", reason="jupyter-repo2docker (in the extra `dev`) is not installed")
    command = [sys.executable, "-m", "repo2docker", "--no-build", "--debug", "."]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-2000:]
    assert "RUN ./binder/postBuild" in said and "/binder/start" in said
    version = (BINDER / "runtime.txt").read_text().strip().removeprefix("python-")
    assert f"environment.py-{version}" in unquote(re.sub(r"-(2[a-f0-9])", r"%\1", said))      # its lock file's name
    assert {path.name for path in BINDER.iterdir() if path.is_file()} == {
        "postBuild", "start", "runtime.txt", "jupyter_server_config.py", "recording.py"}
    for name in ("jupyter_server_config.py", "recording.py"):
        assert f"binder/{name}" in (BINDER / "postBuild").read_text()


@pytest.mark.parametrize("name", ["postBuild", "start"])
def test_scripts_stop_at_the_first_mistake(name):
    script = BINDER / name
    assert script.read_text().startswith("#!/usr/bin/env bash\n") and "\nset -euo pipefail\n" in script.read_text()
    subprocess.run(["bash", "-n", script], check=True)


def test_start_hands_over_to_what_it_is_given_with_few_threads():
    env = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    done = subprocess.run(["bash", BINDER / "start", "bash", "-c", "echo $OMP_NUM_THREADS; exit 7"], env=env,
                          capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (7, "1\n")


# The recording


@pytest.fixture
def recording(tmp_path, monkeypatch):
    """The module binder/recording.py, and a notebook of one cell with the line that all notebooks have."""
    found = importlib.util.spec_from_file_location("binder_recording", BINDER / "recording.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    line = 'import os\nDATA = os.environ.get("WORKBENCH_RECORDING", "reach-sim")\nassert DATA != "no use"'
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(line)]), tmp_path / "one.ipynb")
    monkeypatch.setenv("WORKBENCH_RECORDING", "")
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    return module, tmp_path / "one.ipynb"


def test_the_notebook_opens_the_real_recording_where_it_can_be_had(recording, tmp_path, monkeypatch, capsys):
    module, notebook = recording
    reach_sim(0, seconds=6, units=8).to_nwb(tmp_path / "small.nwb")
    entry = {"id": "mc_maze_small", "title": "stands in", "access": {"method": "local", "path": "small.nwb"}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"schema_version": 1, "datasets": [entry]}))
    monkeypatch.setenv("WORKBENCH_CATALOG", str(tmp_path / "mine.yaml"))
    assert module.choose(notebook) == "mc_maze_small"
    assert '"WORKBENCH_RECORDING", "mc_maze_small"' in nbformat.read(notebook, 4).cells[0].source
    assert "one.ipynb opens mc_maze_small" in capsys.readouterr().out


def test_without_a_network_it_stays_on_the_simulated_one_and_says_why(recording, monkeypatch, capsys):
    module, notebook = recording
    before = notebook.read_bytes()
    monkeypatch.setenv("DANDI_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("workbench.sources.download.BACK_OFF", 0.001)
    assert module.choose(notebook) == "reach-sim"
    said = capsys.readouterr()
    assert "not mc_maze_small" in said.err and "cannot reach" in said.err and "opens reach-sim" in said.out
    assert notebook.read_bytes() == before


def test_a_recording_on_which_the_notebook_fails_is_not_taken(recording, monkeypatch):
    module, notebook = recording
    monkeypatch.setattr(module, "prepare", lambda name: None)
    assert module.choose(notebook, ("no use", "reach-sim")) == "reach-sim"
    with pytest.raises(SystemExit, match="runs on none of no use"):
        module.choose(notebook, ("no use",))


def test_the_line_that_is_changed_is_in_the_notebook(recording):
    module, _ = recording
    assert module.json_text(module.SHIPPED) in module.NOTEBOOK.read_text(encoding="utf-8")


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the system does not tell a process's peak memory")
def test_the_first_notebook_fits_into_the_memory_of_binder(recording, tmp_path, monkeypatch):
    module, _ = recording
    monkeypatch.delenv("WORKBENCH_RECORDING")
    monkeypatch.setenv("WORKBENCH_OFFLINE", "1")
    cells = nbformat.read(module.NOTEBOOK, as_version=4)
    peak = execute(cells, tmp_path, dict(os.environ)).gigabytes
    print(f"peak memory of the kernel: {peak:.2f} GB")
    assert peak < 1.5


# All of it


@pytest.mark.slow
def test_post_build_in_a_new_environment(tmp_path):
    """Downloads what is not in pip's cache: torch among others."""
    tree, home = tmp_path / "tree", tmp_path / "home"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".git", ".venv", "runs", "html", "*.egg-info"))
    home.mkdir()
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "WORKBENCH", "JUPYTER"))}
    env = {**kept, "HOME": str(home), "PATH": f"{tmp_path / 'venv' / 'bin'}:{os.environ['PATH']}"}
    started = time.monotonic()
    done = subprocess.run(["bash", "binder/postBuild"], cwd=tree, env=env, capture_output=True, text=True, timeout=3000)
    size = int(subprocess.check_output(["du", "-sm", tmp_path], text=True).split()[0])
    print(f"{time.monotonic() - started:.0f} s, {size:,} MB")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "00_open_a_recording.ipynb opens " in done.stdout
    assert (home / ".jupyter" / "jupyter_server_config.py").is_file()
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-c", "import jupyter_server_proxy, workbench.apps.main"], cwd=home, env=env, check=True)
    assert subprocess.check_output([python, "-c", "import torch; print(torch.version.cuda)"], text=True) == "None\n"
