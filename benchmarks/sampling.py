"""Windows from a recording to a batch, against torch_brain's Dataset → tokenize → collate, on the same file.

One hour, 200 units at 8 spikes/s; batches of 128 windows of 1 s, with the hand velocity at 100 Hz.
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


def main(seconds: float = 3600.0, batch: int = 128) -> dict[str, float]:
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
        first = np.zeros(batch, np.int64)
        # Another batch at every call, as in training: none of its windows is in the processor's cache.
        batches = cycle(np.random.default_rng(0).random((64, batch)) * (seconds - 1))
        theirs = lambda starts: collate([dataset[DatasetIndex("timing", s, s + 1)] for s in starts])

        reader, spikes_only = Reader([session], ("hand_vel",)), Reader([session])
        padded = PaddedInputs([session], [model.unit_emb.tokenizer(list(session.units["id"]))],
                              [model.session_emb.tokenizer("timing")])
        starts = next(batches)
        want, have = theirs(starts), padded(first, starts)
        for name, value in have.items():
            assert torch.equal(value, want[name]), f"{name} differs from torch_brain's"
        return tell(f"Batches of {batch} windows of 1 s, {len(session.spike_times):,} spikes in {seconds:,.0f} s", {
            "torch_brain Dataset + tokenize + collate": lambda: theirs(next(batches)),
            "flat arrays → the identical padded tensors": lambda: padded(first, next(batches)),
            "SpikeBatch, packed, with the behaviour": lambda: reader.read(first, next(batches), 1.0),
            "SpikeBatch, packed, spikes alone": lambda: spikes_only.read(first, next(batches), 1.0),
        }, "window", batch, repeats=9)


if __name__ == "__main__":
    main()
