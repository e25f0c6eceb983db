"""Ten seconds of 500 units generated: NeuroHorizon's rollout bin by bin, beside Neuroformer, one spike after the other.

500 units at 5 spikes/s on average; the shipped settings of both, and Neuroformer's published size. NeuroHorizon reads
10 s and draws 500 bins of 20 ms, one rollout; a bin at the end should cost what one at the start did. Neuroformer would
take minutes for that: a part of a second is timed, and scaled by spikes to as many as NeuroHorizon drew. It is given no
more than its own past, so that it has nothing long to look through. Untrained weights, whose rates begin at the units'
own: time, not quality.
"""

import time

import numpy as np
import torch

from benchmarks.recordings import poisson
from workbench import models
from workbench.batch import Reader
from workbench.models.base import parameters
from workbench.training.recipe import Recipe

UNITS, RATE, SECONDS, ENDS = 500, 5.0, 10.0, 100                        # spikes/s a unit; bins at either end


def main(turns: int = 3, rollouts: int = 5) -> dict[str, float]:
    """Print both, and return ms a bin, the last bins to the first, and how many times as fast as each Neuroformer."""
    session = poisson("generated", UNITS, RATE, 60.0)
    shipped = {name: Recipe.preset(name).model.settings for name in ("neurohorizon", "neuroformer")}
    model = _built("neurohorizon", session, shipped["neurohorizon"] | {"horizon": SECONDS})
    rivals = {"Neuroformer, shipped size": (_built("neuroformer", session, shipped["neuroformer"]), 0.5),
              "Neuroformer, published size": (_built("neuroformer", session, {}), 0.1)}
    ours, theirs = [], {name: [] for name in rivals}
    for turn in range(1 + turns):                                       # the first one warms up
        found = [rollout(model, session, seed) for seed in range(rollouts)]
        others = {name: one_by_one(rival, session, seconds, turn) for name, (rival, seconds) in rivals.items()}
        if turn:
            ours += found
            for name, each in others.items():
                theirs[name].append(each)
    opening, bins, spikes = (np.array(values) for values in zip(*ours, strict=True))       # bins [rollouts, bins]
    total, spikes, each = np.median(opening + bins.sum(1)), np.median(spikes), 1e3 * np.median(bins, axis=0)
    ends = [np.median(part) for part in (each[:ENDS], each[-ENDS:])]
    print(f"\n{SECONDS:g} s of {UNITS} units, {len(each)} bins of {1e3 * model.bin_size:g} ms, CPU time")
    print(f"  {'NeuroHorizon, shipped size':28s} {parameters(model) / 1e6:5.2f} M {total:8.2f} s, of which "
          f"{np.median(opening):.2f} s before the first bin; {_rate(spikes, SECONDS)}")
    print(f"  {'a bin of it':28s} {np.median(each):16.2f} ms; the first {ENDS} {ends[0]:.2f} ms, the last {ENDS} "
          f"{ends[1]:.2f} ms: {ends[1] / ends[0]:.2f}x")
    told = {"ms a bin": float(np.median(each)), "last to first": float(ends[1] / ends[0])}
    for name, (rival, seconds) in rivals.items():
        a_spike = np.median([spent / drawn for spent, drawn in theirs[name]])
        told[name] = float(a_spike * spikes / total)
        print(f"  {name:28s} {parameters(rival) / 1e6:5.2f} M {a_spike * spikes:8.2f} s for as many spikes, "
              f"{1e3 * a_spike:.2f} ms each, timed on {seconds:g} s; {_rate(theirs[name][-1][1], seconds)}: "
              f"NeuroHorizon is {told[name]:.0f}x as fast")
    return told


def _built(name: str, session, settings: dict):
    torch.manual_seed(0)
    return models.build(name, [session], **settings).eval()


def _rate(spikes: float, seconds: float) -> str:
    return f"{spikes / UNITS / seconds:.1f} spikes/s a unit"


def rollout(model, session, seed: int) -> tuple[float, np.ndarray, int]:
    """CPU seconds of all before the first bin, and of each bin of a rollout; and how many spikes it drew."""
    batch, hear, clock = Reader([session]).read([0], [seed], model.window), model.rollout.hear, []

    def heard(*given):                                                  # ends the opening, and then every bin
        found = hear(*given)
        clock.append(time.process_time())
        return found

    model.rollout.hear = heard
    start = time.process_time()
    drawn = model.forecast(batch, samples=1, seed=seed).counts
    del model.rollout.hear
    return clock[0] - start, np.diff(clock), int(drawn.sum())


def one_by_one(model, session, seconds: float, seed: int) -> tuple[float, int]:
    """CPU seconds of drawing some seconds spike by spike after the model's past, and how many it drew."""
    past = np.ceil(model.warmup / model.bin_size - 1e-6) * model.bin_size
    batch = Reader([session]).read([0], [seed], float(past + seconds))
    torch.manual_seed(seed)
    start = time.process_time()
    drawn = model.generate(batch)
    return time.process_time() - start, int((drawn.times >= past).sum())


if __name__ == "__main__":
    main()
