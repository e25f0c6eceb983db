"""The command line, end to end on a small simulated session."""

import subprocess
import sys

import pytest

from workbench.__main__ import main
from workbench.sources.simulated import reach_sim
from workbench.training.run import Run

SMALL = ["model.dim=16", "threads=1", "budget.steps=30", "budget.eval_every=10"]


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "tiny.h5"
    reach_sim(seconds=40, units=12).save(path)
    return path


def test_train_ends_with_held_out_scores_beside_the_baselines_and_says_finished_the_second_time(
        recording, tmp_path, capsys):
    command = ["train", "gru", f"data={recording}", "--run", str(tmp_path / "run"), "target=hand_vel", *SMALL,
               "baselines={ridge: {}, mlp: {budget: {steps: 20}}}"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "SIMULATED" in out and "ridge" in out and "\n  gru " in out and str(tmp_path / "run") in out
    result = Run(tmp_path / "run").result()
    assert f"{result['scores']['hand_vel']['r2']:.3f}" in out
    assert f"{result['baselines']['ridge']['hand_vel']['r2']:.3f}" in out
    assert [line.split()[0] for line in out.splitlines() if line.endswith("after 20 steps")] == ["mlp"]

    assert main(command) == 0
    again = capsys.readouterr().out
    assert again.startswith("finished before") and out in again

    assert main(["runs", str(tmp_path)]) == 0
    assert "finished" in capsys.readouterr().out


def test_the_same_command_goes_on_with_a_stopped_run(recording, tmp_path, capsys, monkeypatch):
    from workbench.training import reporter
    folder, beat = tmp_path / "run", reporter.Reporter.__call__

    def stop_at_7(report, **fields):
        beat(report, **fields)
        if fields.get("step") == 7:
            (folder / "STOP").touch()

    command = ["train", "gru", f"data={recording}", "--run", str(folder), *SMALL]
    monkeypatch.setattr(reporter.Reporter, "__call__", stop_at_7)
    assert main(command) == 130
    out = capsys.readouterr().out
    assert "stopped with a checkpoint at step 7" in out and str(folder) in out
    monkeypatch.undo()
    assert main(command) == 0
    assert Run(folder).state == "finished"


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is sent by signal")
def test_ctrl_c_in_the_terminal_leaves_a_checkpoint(recording, tmp_path):
    import signal
    import time
    process = subprocess.Popen([sys.executable, "-m", "workbench", "train", "gru", f"data={recording}", *SMALL,
                                "budget.steps=1000000", "--run", str(tmp_path / "run")], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while not (tmp_path / "run/metrics.jsonl").exists() and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "stopped with a checkpoint" in out and "Traceback" not in err
    assert Run(tmp_path / "run").state == "stopped" and list((tmp_path / "run/checkpoints").glob("step-*.pt"))


def test_a_model_solved_at_once_ends_with_its_scores_too(recording, tmp_path, capsys):
    assert main(["train", "ridge", f"data={recording}", "target=hand_vel", "--run", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert "\n  ridge " in out and "solved at once" in out
    assert main(["runs", str(tmp_path)]) == 0


def test_sweep_trains_an_experiment_and_ends_with_its_table(recording, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("recipe: ridge\ngrid: {split.train: [0.5, 1.0], seed: [0, 1]}\n")
    command = ["sweep", str(tmp_path / "mine.yaml"), f"data={recording}", "target=hand_vel", "seed=3", "--run",
               str(tmp_path / "sweep")]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "train=0.5,seed=3" in out and "train=1,seed=3" in out and "seed=0" not in out and str(tmp_path) in out
    r2 = Run(tmp_path / "sweep" / "train=1,seed=3").result()["scores"]["hand_vel"]["r2"]
    assert f"{r2:.4g}" in out
    assert main(command) == 0 and capsys.readouterr().out == out


def test_a_stopped_sweep_says_how_to_go_on_and_a_failed_one_ends_with_1(recording, tmp_path, capsys, monkeypatch):
    from workbench.training import group
    (tmp_path / "mine.yaml").write_text("recipe: ridge\ngrid: {model.bin_size: [0.05, 1000.0]}\n")
    folder, keep = tmp_path / "sweep", group.relay
    monkeypatch.setattr(group, "relay", lambda *args: (Run(folder).stop(), keep(*args))[1])
    command = ["sweep", str(tmp_path / "mine.yaml"), f"data={recording}", "target=hand_vel", "--run", str(folder)]
    assert main(command) == 130
    assert f"go on with: python -m workbench {' '.join(command)}" in capsys.readouterr().out
    monkeypatch.undo()
    assert main(command) == 1
    out = capsys.readouterr().out
    assert "finished" in out and "failed" in out and "1000" in out


@pytest.mark.parametrize(("command", "says"), [
    (["sweep", "maskin"], "masking"),
    (["train", "poyo-reech"], "poyo-reach"),
    (["train", "gru", "optim.lrr=3"], "optim.lr"),
    (["train", "gru", "optim.lr=fast"], "optim.lr is 'fast'"),
    (["train", "gru", "data=nowhere/at_all.nwb"], "at_all.nwb"),
    (["train", "gru", "data=DATA", "target=hand_velo"], "hand_vel"),
    (["train", "gru", "data=DATA", "model.dimm=16"], "dim"),
    (["train", "gru", "data=DATA", "model.window=1000"], "shorter window"),
])
def test_a_mistake_is_one_sentence_on_stderr_and_exit_code_2(command, says, recording, tmp_path, capsys):
    command = [text.replace("DATA", str(recording)) for text in command]
    assert main([*command, "--run", str(tmp_path / "run")]) == 2
    said = capsys.readouterr()
    sentence = [line for line in said.err.splitlines() if line.startswith("workbench: ")]
    assert len(sentence) == 1 and says in sentence[0] and "Traceback" not in said.err
    assert said.out == ""


def test_an_unknown_option_is_refused(capsys):
    with pytest.raises(SystemExit) as left:
        main(["train", "gru", "--runn-it"])
    assert left.value.code == 2 and "--runn-it" in capsys.readouterr().err


def test_help_names_the_recipes_and_shows_examples(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    out = capsys.readouterr().out
    assert "poyo-reach" in out and "--run" in out and "key=value" in out


def test_help_and_refusals_wait_for_no_torch():
    code = ("import sys\nfrom workbench.__main__ import main\n"
            "main(['runs', 'nowhere']); main(['train', 'gru', 'optim.lrr=3']); print('torch' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "False"
