"""A live decoder's step of 50 ms: POSSM with its state against POYO on the last second, one prediction each.

100 units at 8 spikes/s; the published 1.3 M POYO, ours and torch_brain's, and POSSM of one layer of each core, as wide
as gives it as many parameters. Ratios are to our POYO. All are given the spikes as tensors; each step has its own.
Untrained weights: latency, not quality.
"""

import time

import numpy as np
import torch

from benchmarks.poyo import pair
from benchmarks.recordings import poisson
from benchmarks.torch_brain_inputs import PaddedInputs
from workbench.batch import Reader, Target
from workbench.models.base import parameters
from workbench.models.possm import POSSM
from workbench.models.poyo import POYO

CHUNK = 0.05                                                            # seconds


def main(turns: int = 20, steps: int = 25) -> dict[str, float]:
    """Print median and 99th percentile of a step, in turns of many steps; returns how many times as fast as POYO."""
    torch.manual_seed(0)
    session = poisson("live", 100, 8.0, 60.0)
    poyo = POYO.for_sessions([session], target="hand_vel", size="1.3M").eval()
    build = lambda **settings: POSSM.for_sessions([session], target="hand_vel", **settings).eval()
    models = {"POSSM gru": build(width=516), "POSSM s4d": build(core="s4d", width=640),
              "POSSM mamba": build(core="mamba", width=380), "POSSM gru, published size": build()}
    chunks = range(20, 20 + turns * steps)
    theirs = pair([session], batch_size=1)[0]
    cases = {"POYO on the last second": sliding(poyo, session, chunks),
             "POYO, torch_brain's": padded(theirs, session, chunks)} | {
        name: live(model, session, chunks) for name, model in models.items()}
    spent = {name: [] for name in cases}
    for turn in range(turns):
        for name, case in cases.items():
            now = chunks[turn * steps:(turn + 1) * steps]
            each = [case(k) for k in (now[:5] if name.startswith("POYO") else now)]
            spent[name] += each[1:]                                     # the first one warms up
    sizes = {name: parameters(model) for name, model in zip(cases, (poyo, theirs, *models.values()), strict=True)}
    first = np.median(spent["POYO on the last second"])
    print(f"\nA live step of {1e3 * CHUNK:g} ms, 100 units at 8 spikes/s, CPU time")
    for name, seconds in spent.items():
        print(f"  {name:28s} {sizes[name] / 1e6:5.2f} M   median {1e3 * np.median(seconds):7.3f} ms   "
              f"p99 {1e3 * np.percentile(seconds, 99):7.3f} ms   {first / np.median(seconds):7.1f}x")
    return {name: first / np.median(seconds) for name, seconds in spent.items()}


def sliding(model, session, chunks: range):
    """Step k → CPU seconds of POYO on the second that ends with chunk k, for one prediction at its end."""
    reader, answers = Reader([session]), Target(torch.tensor([model.window]), torch.zeros(1, 2), torch.tensor([0, 1]))
    batches = {k: reader.read([0], [(k + 1) * CHUNK - model.window], model.window) for k in chunks}
    for batch in batches.values():
        batch.targets[model.target] = answers

    @torch.inference_mode()
    def step(k: int) -> float:
        start = time.process_time()
        model(batches[k])
        return time.process_time() - start
    return step


def padded(model, session, chunks: range):
    """Step k → CPU seconds of torch_brain's POYO, as `sliding`."""
    units = model.unit_emb.tokenizer([f"{session.id}/{unit}" for unit in session.units["id"]])
    inputs = PaddedInputs([session], [units], model.session_emb.tokenizer([session.id]))
    answers = torch.ones(1, 1, dtype=torch.float64)
    batches = {k: inputs(np.array([0]), np.array([(k + 1) * CHUNK - 1])) | {"output_timestamps": answers}
               for k in chunks}

    @torch.inference_mode()
    def step(k: int) -> float:
        start = time.process_time()
        model(**batches[k])
        return time.process_time() - start
    return step


def live(model, session, chunks: range):
    """Step k → CPU seconds of a step of POSSM with the spikes of chunk k."""
    reader, stream = Reader([session]), model.stream(session, at=[CHUNK])
    batches = {k: reader.read([0], [k * CHUNK], CHUNK) for k in chunks}

    def step(k: int) -> float:
        start = time.process_time()
        stream.step(batches[k].times, batches[k].units)
        return time.process_time() - start
    return step


if __name__ == "__main__":
    main()
