"""The command line: train, sweep, runs, prepare, serve. Each command is one call that a notebook can make too.

    python -m workbench train RECIPE key=value … --run FOLDER
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import textwrap
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from workbench.errors import WorkbenchError

if TYPE_CHECKING:
    from workbench.training.run import Run


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code. A user's mistake is one sentence on stderr, and code 2."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if "settings" in args:                                              # key=value may also follow the options
        args.settings += [text for text in rest if "=" in text and not text.startswith("-")]
        rest = [text for text in rest if text not in args.settings]
    if rest:
        parser.error(f"what is {' '.join(rest)!r}? see python -m workbench {args.name} --help")
    try:
        return args.command(args)
    except WorkbenchError as error:
        print(f"workbench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("workbench: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:                                             # the reader (`| head`) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    from workbench.training.recipe import Recipe
    from workbench.training.sweep import available
    parser = argparse.ArgumentParser(
        prog="python -m workbench", description="Models of neural spikes, side by side, on your own recording.")
    commands = parser.add_subparsers(dest="name", required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str, more: str = "") -> argparse.ArgumentParser:
        own = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".",
                                  epilog=textwrap.dedent(more), formatter_class=argparse.RawDescriptionHelpFormatter)
        own.set_defaults(command=run)
        return own

    def elsewhere(own: argparse.ArgumentParser) -> None:
        own.add_argument("--on", metavar="PLACE", help="local, here, or http://HEAD:8265: a Ray cluster's dashboard")
        own.add_argument("--gpus", type=int, metavar="N", help="as --workers, a GPU for each")
        own.add_argument("--shared", action="store_true", help="the cluster sees the folder under the same name")
        own.add_argument("--wait", action="store_true", help="return only at the end of what runs elsewhere")

    own = command("train", train, "train a model from a recipe and score it on held-out time", f"""\
        shipped recipes: {', '.join(Recipe.available())}

        examples:
          python -m workbench train demo
          python -m workbench train poyo-reach data=my_session.nwb target=hand_vel --run runs/mine
          python -m workbench train gru data=[day1.nwb, day2.nwb] optim.lr=3e-4 seed=1 --detach

        Ctrl-C saves a checkpoint. The same command on the same folder goes on from there.""")
    own.add_argument("recipe", metavar="RECIPE", help="a shipped recipe, or the path of a YAML file")
    own.add_argument("settings", metavar="key=value", nargs="*", default=[], help="settings to change, dotted: "
                     "data=NAME_OR_PATH target=SERIES optim.lr=3e-4 budget.steps=500")
    own.add_argument("--run", metavar="FOLDER", help="where the run lives (default: a new folder under runs/)")
    own.add_argument("--detach", action="store_true", help="train in a process of its own and return at once")
    own.add_argument("--workers", type=int, metavar="N", help="processes that train together, each on a GPU of its own "
                     "where there are GPUs (more than one: detached)")
    elsewhere(own)

    own = command("sweep", sweep, "train a recipe with every combination of some settings, as an experiment says", f"""\
        shipped experiments: {', '.join(available())}

        examples:
          python -m workbench sweep masking --run runs/masking
          python -m workbench sweep masking data=my_session.nwb seed=1 budget.steps=2000

        Ctrl-C saves a checkpoint. The same command on the same folder trains only what is not finished there.""")
    own.add_argument("experiment", metavar="EXPERIMENT", help="a shipped experiment, or the path of a YAML file with "
                     "recipe:, set: and grid:")
    own.add_argument("settings", metavar="key=value", nargs="*", default=[], help="settings to change in every run, "
                     "dotted; one that the experiment varies is fixed")
    own.add_argument("--run", metavar="FOLDER", help="where the runs live (default: a new folder under runs/)")
    own.add_argument("--workers", type=int, metavar="N", help="processes of every run, on a cluster")
    elsewhere(own)

    own = command("runs", list_runs, "list the runs in a folder")
    own.add_argument("folder", metavar="FOLDER", nargs="?", default="runs")

    own = command("prepare", prepare, "fetch a dataset of the catalog, or make it, so that it opens without waiting")
    own.add_argument("dataset", metavar="NAME")

    own = command("serve", serve, "serve the dashboards to a browser")
    own.add_argument("--port", type=int, default=5006)
    own.add_argument("--show", action="store_true", help="open the browser")
    own.add_argument("--prefix", metavar="PATH", default="", help="what addresses begin with behind a proxy")
    own.add_argument("--origin", metavar="HOST", help="whose pages may connect, where that is not this computer; * all")
    return parser


def train(args: argparse.Namespace) -> int:
    from workbench.training.launching import new_folder
    from workbench.training.recipe import Recipe
    from workbench.training.run import Run, launch
    recipe = Recipe.load(args.recipe).override(args.settings)
    folder = args.run or new_folder(recipe.name)
    here = Path(folder, "recipe.yaml").is_file() and Run(folder).state == "finished"
    try:
        detached = args.detach or (args.workers or 1) > 1
        run = launch(recipe, on=args.on or ("local" if detached else "here"), run=folder, workers=args.workers,
                     gpus=args.gpus, shared=args.shared)
    except WorkbenchError:
        raise
    except Exception as error:
        print(f"workbench: training failed ({type(error).__name__}: {error}); the traceback is in "
              f"{Path(folder, 'log.txt')}", file=sys.stderr)
        return 1
    state = run.wait().state if args.wait else run.state
    if state == "finished":
        print(("finished before; " if here else "") + _table(run))
    elif state == "stopped":
        print(f"stopped with a checkpoint at step {run.status.get('step', 0)}; go on with: {_again(args, folder)}")
        return 130
    else:
        print(f"started {run.path}; see it with: python -m workbench runs {run.path.parent}")
    return 0


def _again(args: argparse.Namespace, folder: str | Path) -> str:
    what = getattr(args, "recipe", None) or args.experiment
    return f"python -m workbench {args.name} " + shlex.join([what, *args.settings, "--run", str(folder)])


def sweep(args: argparse.Namespace) -> int:
    from workbench.training.group import Stopped
    from workbench.training.launching import new_folder
    from workbench.training.run import Run, RunFailed
    from workbench.training.sweep import experiment, load, sweep
    recipe, grid = experiment(args.experiment, args.settings)
    folder = args.run or new_folder(Path(args.experiment).stem)
    try:
        table = sweep(recipe, grid, folder=folder, on=args.on or "here", workers=args.workers, gpus=args.gpus,
                      shared=args.shared)
        if args.wait and (table["state"] != "finished").any():
            with suppress(RunFailed):                                   # told in the row
                Run(folder).wait()
            table = load(folder)
    except Stopped:
        print(f"stopped with a checkpoint; go on with: {_again(args, folder)}")
        return 130
    print(table.to_string(na_rep="", float_format="{:.4g}".format))
    print(f"folder: {Path(folder).resolve()}")
    return int((table["state"] == "failed").any())


def _table(run: Run) -> str:
    """The held-out scores with the baselines beside them, and what a reader must know to believe them."""
    result = run.result()
    protocol = result["protocol"]
    names = ", ".join(r["id"] for r in protocol["recordings"])
    test = sum(b - a for part in protocol["split"].values() for a, b in part["test"])
    score = result["scores"].get(protocol["target"], {})
    what = f"R² of {protocol['target']}" if "r2" in score else "scores"
    where = f"{score['presentations']:,} presentations of {score['pictures']:,} pictures" if "pictures" in score else \
        f"the last {test:,.0f} s"
    lines = [f"held-out {what}, {names}{' (SIMULATED)' if protocol['simulated'] else ''}: {where}, which no model was "
             "trained or chosen on"]
    for name, score in run.scores().iterrows():
        each = score.filter(regex=r"^r2_\d+$").dropna().astype(float)
        told = ", ".join(f"{r2:.3f}" for r2 in each) if len(each) <= 8 else \
            f"{each.min():.3f} to {each.max():.3f} over {len(each)}"
        r2 = f"{score['r2']:7.3f}   causal {score['r2_causal']:.3f}   per dimension {told}" if len(each) else ""
        spikes = score[~score.index.str.startswith("r2")].dropna()
        more = "   ".join(f"{key.replace('_', ' ')} {value:.4f}" for key, value in spikes.items())
        if name in result["baselines"]:                                 # trained as its own recipe says
            steps = type(run)(run.path / "baselines" / name).result()["protocol"]["steps"]
            more += f"   after {steps:,} steps" if steps else ""
        lines.append(f"  {name:10} {r2}{'   ' * bool(r2 and more)}{more}")
    for name, scores in result["baselines"].items():
        if "error" in scores:
            lines.append(f"  {name:10} failed: {scores['error']}")
    steps = "solved at once"
    if protocol["steps"]:
        steps = f"{protocol['steps']:,} steps (best at {protocol['best_step']:,})"
    lines += [f"  {steps}, {protocol['parameters']:,} parameters, {protocol['wall_s']:,.0f} s on "
              f"{protocol['machine']['threads']} threads ({protocol['machine']['device']}), seed {protocol['seed']}",
              f"run folder: {run.path}",
              f"look closer: python -m workbench serve, then http://localhost:5006/apps?app=runs&run={quote(str(run.path))}"]
    return "\n".join(lines)


def list_runs(args: argparse.Namespace) -> int:
    from workbench.training.run import runs
    table = runs(args.folder)
    where = Path(args.folder).resolve()
    print(table.to_string(na_rep="", float_format="{:.3f}".format) if len(table) else f"no runs in {where}")
    return 0


def prepare(args: argparse.Namespace) -> int:
    from workbench import catalog
    catalog.prepare(args.dataset)
    return 0


def serve(args: argparse.Namespace) -> int:
    from panel.command import main as panel  # in this process: who stops it stops the server

    apps = Path(__file__).parent / "apps"
    sys.argv = ["panel", "serve", str(apps), *map(str, sorted(apps.glob("[a-z]*.py"))), "--index", "apps",
                "--port", str(args.port), "--prefix", args.prefix, *["--show"] * args.show,
                *(["--allow-websocket-origin", args.origin] if args.origin else [])]
    panel()
    return 0


if __name__ == "__main__":
    sys.exit(main())
