"""What every model has in common: built for sessions, a forward pass over a batch, a loss, a folder to live in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from workbench.batch import SpikeBatch
from workbench.session import Session


@dataclass(frozen=True)
class Output:
    """What a model says of a batch; None where it says nothing.

    log_rates [B, N, T] log spikes per bin · behavior [Q, D] at the target's times, in its unit · latents [B, L, D]
    """

    log_rates: Tensor | None = None
    behavior: Tensor | None = None
    latents: Tensor | None = None


class SpikeModel(nn.Module, PyTorchModelHubMixin):
    """Base of every model. `__init__` takes JSON types only, so that a folder or a hub page can rebuild the model.

    window    seconds of spikes that the model wants to see at once
    warmup    seconds at the start of each window whose predictions lack history and are not used
    bin_size  seconds of its bins, for a model of binned counts: its windows are aligned with the target's samples
    """

    name = ""
    decodes = reconstructs = forecasts = generates = embeds = False
    window: float = 1.0
    warmup: float = 0.0
    bin_size: float | None = None

    @classmethod
    def for_sessions(cls, sessions: Sequence[Session], **settings) -> SpikeModel:
        """A model with rows for the units of `sessions`; settings left out come from these recordings."""
        raise TypeError(f"{cls.__name__} is not a model that can be built")

    def loss(self, batch: SpikeBatch) -> dict[str, Tensor]:
        """Scalars to log; "loss" is the one to minimise."""
        raise TypeError(f"{type(self).__name__} has no loss")

    def save_pretrained(self, save_directory: str | Path, **options):
        """Write model.safetensors and config.json (settings, and the model's name) into a folder."""
        result = super().save_pretrained(save_directory, **options)
        path = Path(save_directory) / "config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps({"model": self.name, **config}, indent=2))
        return result


def scaling(sessions: Sequence[Session], target: str) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each column of a series over sessions, gaps left out.

    Pass sessions cut to their training part: the scale of what is held out is not ours to know.
    """
    values = np.concatenate([s.get_series(target).values for s in sessions]).astype(np.float64)
    values = values[np.isfinite(values).all(1)]
    scale = values.std(0) if len(values) else np.ones(values.shape[1])
    return values.mean(0).tolist(), np.where(scale > 0, scale, 1.0).tolist()


def sampling_interval(sessions: Sequence[Session], target: str) -> float:
    """The longest median sampling interval of a series over sessions, in seconds."""
    return max(s.get_series(target).interval for s in sessions)


def parameters(model: nn.Module) -> int:
    """How many numbers the model learns."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
