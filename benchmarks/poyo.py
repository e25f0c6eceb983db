"""Our POYO against torch_brain's, the same weights, the published 1.3 M size; encoder alone and the whole model.

even    32 windows of one session of 100 units at 8 spikes/s
mixed   32 windows of ten sessions of 20 to 300 units at 2 to 12 spikes/s: padding is most of the padded batch
"""

import numpy as np
import torch
from torch_brain.models import POYO as TorchBrainPOYO

from benchmarks.clock import tell
from benchmarks.recordings import poisson
from benchmarks.torch_brain_inputs import PaddedInputs
from workbench.batch import Reader
from workbench.models.poyo import POYO


def even():
    """One session, little padding."""
    return [poisson("even", 100, 8.0, 60.0)]


def mixed():
    """Ten sessions of very different sizes."""
    units, rates = np.linspace(20, 300, 10).astype(int), np.linspace(2, 12, 10)
    return [poisson(f"mixed{i}", int(units[i]), float(rates[i]), 60.0, seed=i) for i in range(10)]


def pair(sessions, batch_size: int = 32, seed: int = 0):
    """torch_brain's model, ours with its weights, and the same windows as each wants them; and the padding's share."""
    torch.manual_seed(seed)
    theirs = TorchBrainPOYO(sequence_length=1.0, latent_step=0.125, num_latents_per_step=16, dim=64, depth=6, dim_out=2,
                            cross_heads=2, atn_dropout=0.2).eval()
    names = [[f"{s.id}/{u}" for u in s.units["id"]] for s in sessions]
    theirs.unit_emb.initialize_vocab([name for part in names for name in part])
    theirs.session_emb.initialize_vocab([s.id for s in sessions])
    ours = POYO.from_torch_brain(theirs.state_dict(), target="hand_vel").eval()

    random = np.random.default_rng(seed)
    which = np.arange(batch_size) % len(sessions)
    starts = random.random(batch_size) * 58
    batch = Reader(sessions, ("hand_vel",)).read(which, starts, 1.0)
    inputs = PaddedInputs(sessions, [theirs.unit_emb.tokenizer(part) for part in names],
                          theirs.session_emb.tokenizer([s.id for s in sessions]))(which, starts)
    # A batch holds float32 times; at rotary periods of 0.1 ms their rounding alone moves outputs by 1e-5.
    inputs["input_timestamps"] = inputs["input_timestamps"].float().double()
    target = batch.targets["hand_vel"]
    size, window = target.offsets.diff(), torch.repeat_interleave(target.offsets.diff())
    there = torch.arange(int(size.max())) < size[:, None]
    inputs["output_timestamps"] = torch.zeros(there.shape, dtype=torch.float64)
    inputs["output_timestamps"][there] = target.times.double()
    assert torch.equal(there.nonzero()[:, 0], window)
    return theirs, ours, inputs, batch, there


def main() -> dict[str, dict[str, float]]:
    """Print both comparisons; returns the ratios."""
    return {kind: compare(kind, sessions) for kind, sessions in (("even", even()), ("mixed", mixed()))}


def compare(kind, sessions) -> dict[str, float]:
    """Print the ratios of one kind of batch; returns them."""
    theirs, ours, inputs, batch, there = pair(sessions)
    padding = 1 - inputs["input_mask"].float().mean()
    with torch.no_grad():
        error = (theirs(**inputs)[there] - ours(batch).behavior).abs().max()
    size = f"{kind} sessions, 32 windows, {len(batch.times):,} spikes, {padding:.0%} padding"
    print(f"\n{size}: largest difference of the outputs {error:.1e}")
    with torch.inference_mode():
        encoder = tell(f"encoder forward, {size}", {
            "torch_brain": lambda: their_encoder(theirs, inputs), "workbench": lambda: ours.encode(batch)})
        model = tell(f"whole model forward, {size}", {
            "torch_brain": lambda: theirs(**inputs), "workbench": lambda: ours(batch)})
    both = tell(f"whole model forward and backward, {size}", {
        "torch_brain": lambda: theirs(**inputs)[there].square().mean().backward(),
        "workbench": lambda: ours(batch).behavior.square().mean().backward()})
    return {"encoder": encoder["workbench"], "model": model["workbench"], "forward and backward": both["workbench"]}


def their_encoder(model, inputs):
    """The first part of torch_brain's forward pass, up to the latents that enter its processor."""
    tokens = model.unit_emb(inputs["input_unit_index"]) + model.token_type_emb(inputs["input_token_type"])
    latents = model.latent_emb(inputs["latent_index"])
    latents = latents + model.enc_atn(latents, tokens, model.rotary_emb(inputs["latent_timestamps"]),
                                      model.rotary_emb(inputs["input_timestamps"]), inputs["input_mask"])
    return latents + model.enc_ffn(latents)


if __name__ == "__main__":
    main()
