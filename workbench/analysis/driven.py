"""A small forecaster of a simulated recording whose drives are known: what attribution can be tried on within a minute.

    reach_sim, four regions driven by movement, by the plan, by both, by neither → a small NeuroHorizon, trained briefly

It has seen little, and is no measure of what the model can do.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from workbench import models
from workbench.session import Session
from workbench.sources.simulated import reach_sim
from workbench.windows import RandomWindows, split

DRIVES = {"MOVE": (2.0, 0.0), "PLAN": (0.0, 2.0), "BOTH": (1.5, 1.5), "NONE": (0.0, 0.0)}          # movement, plan
PLAN = ("trials.target_on_time:reach_x,reach_y", "trials.move_onset_time:reach_x,reach_y")
MODALITIES = {"movement": ("hand_vel",), "plan": PLAN, "spikes": ("spikes",)}
SMALL = dict(bin_size=0.05, chunk=0.1, history=2.0, recent=1.0, horizon=1.0, dim=16, width=32, latents=1, depth=1,
             heads=2, dropout=0.0, identity="embedding", free=0.0)


def driven(*, steps: int = 400, seconds: float = 300.0, units: int = 24, seed: int = 0,
           progress: Callable[[int, int], None] | None = None) -> tuple[torch.nn.Module, Session]:
    """The model, and its session. progress: called with (steps done, steps there are). See `MODALITIES`."""
    session = reach_sim(seconds=seconds, units=units, seed=seed, drives=DRIVES)
    train = split(session)["train"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = models.build("neurohorizon", [session.within(train)], conditions=["hand_vel", *PLAN], **SMALL)
        batches = RandomWindows([session], [train], duration=model.window, batch_size=16, seed=seed, also=model.reads)
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=steps)
        for step in range(steps):
            optimiser.zero_grad()
            model.loss(batches.batch(step))["loss"].backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            if progress is not None:
                progress(step + 1, steps)
    return model.eval(), session
