"""Log rates of a whole grid, 1,769 units × 100 bins, from the latents of one window: NeuroBridge's two target decoders.

The factorised form reads the latents once a bin; the queries read them once a unit and bin, in pieces without
gradients, and are trained on a sample of the hidden entries. Width 128, 80 latents. Both with each unit's own activity
beside. 1,769 is a made-up size: the recordings that it was made for have 619 to 1,157 units.
"""

from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks.clock import tell
from workbench.models.neurobridge import NeuroBridge
from workbench.nn.near import near

UNITS, BINS, WIDTH, SAMPLE = 1769, 100, 128, 256


def main() -> dict[str, float]:
    """Print times, and each case's peak memory from a process of its own; returns the ratios to the first."""
    found = tell(f"Grid of {UNITS:,} units × {BINS} bins, one window", {name: case() for name, case in CASES.items()},
                 repeats=3)
    for name in CASES:
        with get_context("spawn").Pool(1) as alone:
            print(f"  {name:44s} {alone.apply(_memory, (name,)):10.0f} MB beside the weights")
    return found


def _memory(name: str) -> float:
    """The most MB that this process held during a call beyond what it held before (Linux)."""
    torch.set_num_threads(1)
    case = CASES[name]()
    held = lambda what: next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines()
                             if line.startswith(what)) / 1024
    Path("/proc/self/clear_refs").write_text("5")                       # the peak starts anew
    before = held("VmRSS")
    case()
    return held("VmHWM") - before


def _parts(decoder: str):
    torch.manual_seed(0)
    model = NeuroBridge(units=[f"a/u{i}" for i in range(UNITS)], regions={}, bin_size=0.01, chunk=0.05, width=WIDTH,
                        depth=1, heads=4, dropout=0.0, decoder=decoder)
    turns = 20 * model.per_chunk
    at, bins = ((torch.arange(n) + 0.5) / n for n in (turns, BINS))
    asked = model.rotary(at), model.rotary(bins), near(model.pace, bins, at)
    latents, units = torch.randn(1, turns, WIDTH, requires_grad=True), torch.randn(1, UNITS, 128, requires_grad=True)
    counts = torch.poisson(torch.full((1, UNITS, BINS), 0.08))
    own = lambda: model.own(counts, torch.rand_like(counts) < 0.5, torch.full((1, UNITS, 1), 0.08).log(),
                            model.own.known(units))
    return model, latents, units, asked, own


def _forward(decoder: str):
    model, latents, units, asked, own = _parts(decoder)

    @torch.inference_mode()
    def call():
        return model.decoder(latents, model.decoder.known(units), *asked) + own()
    return call


def _factorised():
    model, latents, units, asked, own = _parts("factorised")
    return lambda: (model.decoder(latents, model.decoder.known(units), *asked) + own()).exp().mean().backward()


def _sampled():
    model, latents, units, (turn, bins, close), own = _parts("queries")
    unit, at = torch.randint(UNITS, (SAMPLE,)), torch.randint(BINS, (SAMPLE,))

    def call():
        found = model.decoder.ask(latents, model.decoder.known(units)[:, unit], turn, bins[at][None], close[:, at])
        (found + own()[:, unit, at]).exp().mean().backward()
    return call


CASES = {"factorised, forward and backward": _factorised, "factorised, forward": lambda: _forward("factorised"),
         f"queries, forward and backward of {SAMPLE}": _sampled,
         "queries, forward in pieces": lambda: _forward("queries")}
