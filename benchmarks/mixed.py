"""A training step on windows of several sessions: units' rows laid out by window with a gather, against masked_scatter.

Four simulated sessions of 600 to 1,150 units, 16 windows of 0.4 s in 50 ms bins: sizes of the Steinmetz recordings.
Only the layout differs; both say the same.
"""

from collections.abc import Callable
from functools import partial

import torch

from benchmarks.clock import tell
from benchmarks.recordings import poisson
from workbench import models
from workbench.batch import SpikeBatch
from workbench.nn import stitcher
from workbench.windows import RandomWindows

UNITS = 600, 700, 750, 1150


def main(seconds: float = 60.0) -> dict[str, float]:
    """Print times and ratios of NDT1 and NeuroBridge; returns the ratios, under the models' names."""
    sessions = [poisson(f"mixed{i}", units, 5.0, seconds, seed=i) for i, units in enumerate(UNITS)]
    ways = {"masked_scatter": scattered, "gather": stitcher.padded}
    found = {}
    for name, settings in (("ndt1", {}), ("neurobridge", {"dim": 64, "width": 96, "depth": 3, "latents": 2})):
        torch.manual_seed(0)
        model = models.build(name, sessions, bin_size=0.05, window=0.4, **settings).train()
        batch = RandomWindows(sessions, [s.intervals for s in sessions], duration=0.4, batch_size=16).batch(0)
        gradients = {way: step(model, batch, padded) for way, padded in ways.items()}
        assert torch.allclose(*gradients.values(), rtol=1e-3, atol=1e-6), "the two ways differ"
        ratios = tell(f"{name}: forward and backward of 16 windows of four sessions", {
            way: partial(step, model, batch, padded) for way, padded in ways.items()}, repeats=5)
        found[name] = ratios["gather"]
    return found


def scattered(values: torch.Tensor, there: torch.Tensor, which: torch.Tensor | None = None) -> torch.Tensor:
    """`stitcher.padded` by masked_scatter."""
    values = values if which is None else values[which]
    return values.new_zeros(*there.shape, values.shape[1]).masked_scatter(there[..., None], values)


def step(model: torch.nn.Module, batch: SpikeBatch, padded: Callable) -> torch.Tensor:
    """The gradients of a step by one way of the layout, all in a row."""
    stitcher.padded, ours = padded, stitcher.padded
    try:
        torch.manual_seed(0)                                            # the same mask and dropout
        model.zero_grad(set_to_none=True)
        model.loss(batch)["loss"].backward()
    finally:
        stitcher.padded = ours
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


if __name__ == "__main__":
    main()
