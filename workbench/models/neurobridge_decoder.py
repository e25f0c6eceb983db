"""NeuroBridge downstream: the pretrained encoder, its target decoder dropped, and a readout of its latents.

    spikes → NeuroBridge.encode → latents [B, C × L, width] → readout at each sample's time → linear → behavior

    queries   K learned queries ask the latents at the sample's time, the nearer ones first (the default)
    mean      the average of the latents of the sample's chunk
    cls       one token that went through the transformer with the latents: the same for all samples of a window

Built from scratch, or with `pretrained`, the folder of a NeuroBridge, on the same recordings or on others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from workbench.batch import SpikeBatch
from workbench.errors import UnknownName, WorkbenchError
from workbench.losses import window_mse
from workbench.models.base import Output, SpikeModel, scaling
from workbench.models.neurobridge import NeuroBridge
from workbench.nn.near import near
from workbench.nn.perceiver import CrossAttention
from workbench.session import Session

READOUTS = ("queries", "mean", "cls")


class NeuroBridgeDecoder(SpikeModel):
    """encoder: settings of a `NeuroBridge`; outputs of `target`, whose mean and scale undo the standardisation."""

    name = "neurobridge_decoder"
    decodes = embeds = True
    takes = "spikes"
    rows_lr = 2e-2                                                      # no decoder is left to recognise new units by

    def __init__(self, *, encoder: Mapping, target: str, outputs: int, mean: Sequence[float], scale: Sequence[float],
                 readout: str = "queries", queries: int = 4, readout_dropout: float = 0.2):
        super().__init__()
        if readout not in READOUTS:
            raise UnknownName("readout", readout, READOUTS, where="the readouts of NeuroBridge")
        self.encoder, self.target, self.readout = NeuroBridge(**encoder), target, readout
        del self.encoder.decoder, self.encoder.own
        self.encoder.rates.weight.requires_grad_(False)                 # counted, not learned: `hear` alone reads them
        self.bin_size, self.chunk, self.window = self.encoder.bin_size, self.encoder.chunk, self.encoder.window
        width, heads = self.encoder.widen.out_features, len(self.encoder.pace)
        asked = {"queries": queries, "mean": 0, "cls": 1}[readout]
        self.queries = nn.Parameter(torch.randn(asked, width) * 0.02) if asked else None
        self.ask = CrossAttention(width, heads, head_dim=width // heads, dropout=0.0) if readout == "queries" else None
        self.out = nn.Sequential(nn.LayerNorm(width * max(asked, 1)), nn.Dropout(readout_dropout),
                                 nn.Linear(width * max(asked, 1), outputs))
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("scale", torch.tensor(scale))

    @classmethod
    def for_sessions(cls, sessions: Sequence[Session], *, target: str, pretrained: str = "",
                     encoder: Mapping | None = None, **settings) -> NeuroBridgeDecoder:
        """pretrained: the folder of a NeuroBridge, or of a run that trained one; units that it has not met get new
        rows. Or encoder: settings of a new one, as for `NeuroBridge.for_sessions`.
        """
        if pretrained and encoder:
            raise WorkbenchError("a pretrained encoder has its own settings, and encoder= would change them; leave "
                                 "either out")
        whole = NeuroBridge.from_pretrained(pretrained) if pretrained else \
            NeuroBridge.for_sessions(sessions, **(encoder or {}))
        whole.extend(sessions)
        mean, scale = scaling(sessions, target)
        model = cls(encoder=whole._hub_mixin_config, target=target, outputs=len(mean), mean=mean, scale=scale,
                    **settings)
        kept = model.encoder.state_dict()
        model.encoder.load_state_dict({name: value for name, value in whole.state_dict().items() if name in kept})
        return model

    def extend(self, sessions: Sequence[Session]) -> None:
        self.encoder.extend(sessions)
        self._hub_mixin_config["encoder"] = self.encoder._hub_mixin_config

    def forward(self, batch: SpikeBatch) -> Output:
        """Behaviour [Q, outputs] at the target's times, packed as in the batch, and latents [B, C, L × width]."""
        target, encoder = batch.targets[self.target], self.encoder
        window = torch.repeat_interleave(target.offsets.diff())
        if self.readout == "cls":
            token, latents = encoder.encode_with(batch, self.queries)
            found = token[:, 0][window]
        else:
            latents = encoder.encode(batch)
            found = self._mean(latents, window, target.times) if self.readout == "mean" else \
                self._asked(latents, window, target.times, target.offsets)
        return Output(behavior=self.out(found) * self.scale + self.mean, latents=encoder.by_chunk(latents))

    def loss(self, batch: SpikeBatch) -> dict[str, Tensor]:
        """Mean squared error of the standardised behaviour."""
        return {"loss": window_mse(self(batch).behavior, batch.targets[self.target], self.scale)}

    def _mean(self, latents: Tensor, window: Tensor, times: Tensor) -> Tensor:
        """The mean of the latents of every sample's chunk [Q, width]."""
        chunks = latents.unflatten(1, (-1, self.encoder.per_chunk)).mean(2)
        return chunks[window, (times / self.chunk + 1e-4).long().clamp_(max=chunks.shape[1] - 1)]

    def _asked(self, latents: Tensor, window: Tensor, times: Tensor, offsets: Tensor) -> Tensor:
        """What the queries find at every sample's time [Q, K × width]."""
        encoder, number = self.encoder, len(self.queries)
        column = torch.arange(len(times), device=times.device) - offsets[:-1][window]
        padded = times.new_zeros(len(latents), int(offsets.diff().max()))
        padded[window, column] = times
        padded = padded.repeat_interleave(number, 1)                                            # [B, most × K]
        at = (torch.arange(latents.shape[1], device=times.device) + 0.5) * (self.chunk / encoder.per_chunk)
        queries = self.queries.repeat(padded.shape[1] // number, 1).expand(len(latents), -1, -1)
        found = queries + self.ask(queries, encoder.rotary(padded), latents, encoder.rotary(at),
                                   near(encoder.pace, padded, at))
        return found.unflatten(1, (-1, number)).flatten(2)[window, column]
