"""The padded tensors that torch_brain's POYO takes, made straight from flat arrays: the same tensors, bit for bit."""

import numpy as np
import torch

from workbench.session import Session


class PaddedInputs:
    """unit_rows: row of each unit of each session in the vocabulary; the rest as in torch_brain's `POYO.tokenize`."""

    def __init__(self, sessions: list[Session], unit_rows: list[np.ndarray], session_rows: list[int], *,
                 duration: float = 1.0, step: float = 0.125, latents: int = 16):
        self.sessions, self.session_rows, self.duration = sessions, np.asarray(session_rows), duration
        self.rows = [np.asarray(rows, np.int64) for rows in unit_rows]
        self.edges = [(np.repeat(rows, 2), np.tile([0.0, duration], len(rows)), np.tile([1, 2], len(rows)))
                      for rows in self.rows]
        times = np.arange(0, duration, step) + step / 2
        self.latent_times = torch.from_numpy(np.repeat(times, latents))
        self.latent_index = torch.from_numpy(np.tile(np.arange(latents), len(times)))

    def __call__(self, session: np.ndarray, starts: np.ndarray) -> dict[str, torch.Tensor]:
        """The batch of windows [starts[b], starts[b] + duration) of sessions[session[b]]."""
        rows = []
        for s in np.unique(session):
            at = np.flatnonzero(session == s)
            spans = np.searchsorted(self.sessions[s].spike_times, np.stack([starts[at], starts[at] + self.duration], 1))
            rows += zip(at.tolist(), [s] * len(at), spans[:, 0].tolist(), spans[:, 1].tolist(), strict=True)
        longest = max(stop - start + len(self.edges[s][0]) for _, s, start, stop in rows)
        shape = (len(starts), longest + -longest % 8)
        units, times, types = np.zeros(shape, np.int64), np.zeros(shape), np.zeros(shape, np.int64)
        mask = np.zeros(shape, bool)
        for b, s, start, stop in rows:
            edge_units, edge_times, edge_types = self.edges[s]
            e, n = len(edge_units), len(edge_units) + stop - start
            units[b, :e], times[b, :e], types[b, :e], mask[b, :n] = edge_units, edge_times, edge_types, True
            np.take(self.rows[s], self.sessions[s].spike_units[start:stop], out=units[b, e:n])
            np.subtract(self.sessions[s].spike_times[start:stop], starts[b], out=times[b, e:n])
        expand = lambda x: x.expand(len(starts), -1)
        return {"input_unit_index": torch.from_numpy(units), "input_timestamps": torch.from_numpy(times),
                "input_token_type": torch.from_numpy(types), "input_mask": torch.from_numpy(mask),
                "latent_index": expand(self.latent_index), "latent_timestamps": expand(self.latent_times),
                "session_index": torch.from_numpy(self.session_rows[session])}
