"""The scripts for SLURM and Kubernetes, as far as can be seen without either: Ray is real, `srun` stands in."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml

from tests.training.test_cluster import needs_ray
from workbench.training.run import Run

SCRIPTS = Path(__file__).resolve().parents[2] / "workbench" / "scripts"


@pytest.mark.cluster
@pytest.mark.skipif(sys.platform != "linux", reason="Ray clusters are for Linux")
def test_the_script_for_slurm_trains_where_srun_starts_its_command(tiny, tmp_path):
    needs_ray()
    if any("raylet" in process.info["name"] for process in psutil.process_iter(["name"])):
        pytest.skip("another Ray runs on this machine, and this one's end would be its end")
    for name, does in {"scontrol": "echo 127.0.0.1", "srun": 'shift; exec "$@"'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    tiny.save(tmp_path / "recipe.yaml")
    path = os.pathsep.join([str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]])
    there = {"PATH": path, "SLURM_JOB_NODELIST": "here", "SLURM_JOB_NUM_NODES": "1", "RAY_AUTH_MODE": "disabled",
             "RAY_raylet_start_wait_time_s": "150"}
    done = subprocess.run(["bash", SCRIPTS / "slurm.sh", tmp_path / "recipe.yaml", "--run", tmp_path / "run"],
                          env={**os.environ, **there}, capture_output=True, text=True, timeout=600, cwd=tmp_path)
    told = done.stdout + done.stderr
    if "timed out during startup" in told:
        pytest.skip("Ray did not start within its limits here")
    assert done.returncode == 0, told
    assert Run(tmp_path / "run").state == "finished" and "held-out R² of hand_vel" in done.stdout


def test_the_script_for_slurm_is_bash():
    subprocess.run(["bash", "-n", SCRIPTS / "slurm.sh"], check=True)


def test_the_cluster_for_kubernetes_has_the_ray_of_the_constraints():
    cluster = yaml.safe_load((SCRIPTS / "kuberay.yaml").read_text())
    constraints = (SCRIPTS.parents[1] / "constraints.txt").read_text()
    assert f"\nray=={cluster['spec']['rayVersion']}" in constraints
    head, (group,) = cluster["spec"]["headGroupSpec"], cluster["spec"]["workerGroupSpecs"]
    for spec in (head["template"]["spec"], group["template"]["spec"]):
        assert spec["containers"][0]["volumeMounts"][0]["name"] == spec["volumes"][0]["name"]
