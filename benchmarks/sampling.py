"""Windows from a recording to a batch, against torch_brain's Dataset → tokenize → collate, on the same file.

One hour, 200 units at 8 spikes/s; batches of 128 windows of 1 s, with the hand velocity at 100 Hz. Once with the same
windows at every call, which stay in the processor's cache, and once with others, as in training.
"""

import tempfile
from itertools import cycle
from pathlib import Path

import numpy as np
import torch
from torch_brain.batching import collate
from torch_brain.datasets import Dataset, DatasetIndex
from torch_brain.models import POYO

from benchmarks.clock import tell
from benchmarks.recordings import poisson
from benchmarks.torch_brain_inputs import PaddedInputs
from workbench.batch import Reader
from workbench.session import Session


def main(seconds: float = 3600.0, batch: int = 128) -> dict[str, dict[str, float]]:
    """Print windows per second and ratios; returns the ratios."""
    with tempfile.TemporaryDirectory() as folder:
        path = poisson("timing", 200, 8.0, seconds).save(Path(folder) / "timing.h5")
        session = Session.open(path)
        model = POYO(sequence_length=1.0, latent_step=0.125, num_latents_per_step=16, dim=64, dim_out=2)
        model.unit_emb.initialize_vocab(list(session.units["id"]))
        model.session_emb.initialize_vocab(["timing"])

        def tokenize(data):
            target = data.hand_vel
            return model.tokenize(data) | {"output_timestamps": target.timestamps, "output_values": target.values}

        dataset = Dataset(folder, transform=tokenize)
        reader, spikes_only = Reader([session], ("hand_vel",)), Reader([session])
        padded = PaddedInputs([session], [model.unit_emb.tokenizer(list(session.units["id"]))],
                              [model.session_emb.tokenizer("timing")])
        first = np.zeros(batch, np.int64)
        theirs = lambda starts: collate([dataset[DatasetIndex("timing", s, s + 1)] for s in starts])

        many = np.random.default_rng(0).random((64, batch)) * (seconds - 1)
        want, have = theirs(many[0]), padded(first, many[0])
        for name, value in have.items():
            assert torch.equal(value, want[name]), f"{name} differs from torch_brain's"
        ratios = {}
        for how, batches in (("the same windows again", cycle(many[:1])), ("other windows each time", cycle(many))):
            ratios[how] = tell(
                f"Batches of {batch} windows of 1 s, {how}; {len(session.spike_times):,} spikes in {seconds:,.0f} s", {
                    "torch_brain Dataset + tokenize + collate": lambda b=batches: theirs(next(b)),
                    "flat arrays → the identical padded tensors": lambda b=batches: padded(first, next(b)),
                    "SpikeBatch, packed, with the behaviour": lambda b=batches: reader.read(first, next(b), 1.0),
                    "SpikeBatch, packed, spikes alone": lambda b=batches: spikes_only.read(first, next(b), 1.0),
                }, "window", batch, repeats=9)
        return ratios


if __name__ == "__main__":
    main()
