"""The adapter alone learns, through a network that stays as it was to the bit, and learns what the scheduler says."""

import hashlib
from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler
from torch import nn

from tests.images import folders
from workbench.errors import WorkbenchError
from workbench.images.embedding import ModelNotHere
from workbench.images.token_adapter import TokenAdapter, encode_pictures, fit_denoise, fit_states, text_widths

DIM = 24


def adapter(width=32, seed=0, **settings):
    torch.manual_seed(seed)
    return TokenAdapter(DIM, 4, width, **dict(layers=1, bottleneck=16) | settings)


@pytest.fixture(scope="module")
def network():
    return folders.unet(32)


@pytest.fixture(scope="module")
def cached():
    """Latents and vectors of 8 pictures; each vector has another scale."""
    random = torch.Generator().manual_seed(0)
    return torch.randn(8, 4, 8, 8, generator=random), 5 * torch.randn(8, DIM, generator=random)


def digest(*modules):
    made = hashlib.sha256()
    for module in modules:
        for name, value in module.state_dict().items():
            made.update(name.encode() + value.numpy().tobytes())
    return made.hexdigest()


def schedule(**settings):
    return DDIMScheduler(**folders.SCHEDULE, **settings)


# The adapter


def test_tokens_have_the_widths_of_the_unet():
    for width, pooled in ((32, None), (64, 16)):
        made = TokenAdapter.from_unet_config(folders.unet(width, pooled).config, DIM, layers=2, bottleneck=16)
        assert made(torch.randn(3, DIM)).shape == (3, 8, width)
        tokens, summed = made.condition(torch.randn(3, DIM), torch.tensor([True, False, True]))
        assert torch.equal(tokens[0], made.null) and torch.equal(tokens[2], made.null)
        assert not torch.equal(tokens[1], made.null)
        assert summed is None if pooled is None else torch.equal(summed[0], made.null_pooled)
    long = TokenAdapter.from_unet_config({"cross_attention_dim": 32}, DIM, n_tokens=77)
    assert long(torch.zeros(1, DIM)).shape == (1, 77, 32)


def test_sdxl_says_its_widths_in_three_numbers():
    true = dict(cross_attention_dim=2048, addition_embed_type="text_time", addition_time_embed_dim=256,
                projection_class_embeddings_input_dim=2816)
    assert text_widths(true) == (2048, 1280)
    assert text_widths({"cross_attention_dim": [768, 768]}) == (768, None)


@pytest.mark.parametrize("config", [{"cross_attention_dim": [32, 64]}, {"cross_attention_dim": None},
                                    {"cross_attention_dim": 768, "addition_embed_type": "image"},
                                    {"cross_attention_dim": 1024, "class_embed_type": "projection"}])
def test_a_unet_that_is_told_otherwise_is_refused(config):
    with pytest.raises(WorkbenchError, match="text states of one width alone"):
        text_widths(config)


def test_few_tokens_are_an_order_smaller_than_a_caption():
    size = lambda n: sum(p.numel() for p in TokenAdapter(8, n, 768, layers=0).parameters())
    assert size(77) > 40e6 / 3 and size(8) < size(77) / 6


@pytest.mark.parametrize("pooled", [None, 6])
def test_a_folder_gives_back_what_was_saved(pooled, tmp_path):
    made = adapter(pooled=pooled, embedder="a CLIP")
    made.save_pretrained(tmp_path / "a")
    again = TokenAdapter.from_pretrained(tmp_path / "a")
    vectors, out = torch.randn(2, DIM), torch.tensor([True, False])
    assert again.embedder == "a CLIP" and digest(again) == digest(made)
    for one, two in zip(made.condition(vectors, out), again.condition(vectors, out), strict=True):
        assert one is two is None or torch.equal(one, two)
    with pytest.raises(ModelNotHere, match=r"no token adapter in .*save_pretrained"):
        TokenAdapter.from_pretrained(tmp_path)


# Stage 0


def test_states_of_captions_are_learned(cached):
    made, states = adapter(), torch.randn(8, 4, 32)
    losses = fit_states(made, cached[1], states, empty=states[0], steps=150, lr=3e-3, noise=0.0)
    assert len(losses) == 150 and losses[-1] < 0.2 * losses[0]
    assert torch.equal(made.null, states[0])                            # nothing was left out, so nothing moved it


def test_pooled_text_is_learned_beside_the_states(cached):
    made, pooled = adapter(pooled=6), 3 * torch.randn(8, 6)
    off = lambda: (made.pool(cached[1]) - pooled).square().mean().item()
    before = off()
    fit_states(made, cached[1], torch.zeros(8, 4, 32), pooled=pooled, steps=200, lr=1e-2)
    assert off() < 0.5 * before


def test_states_that_do_not_fit_are_refused(cached):
    with pytest.raises(WorkbenchError, match=r"\[8, 77, 32\] .* 4 tokens of 32; .*states\[:, :4\].*n_tokens=77"):
        fit_states(adapter(), cached[1], torch.zeros(8, 77, 32))
    with pytest.raises(WorkbenchError, match="has no head for pooled text and pooled= was given"):
        fit_states(adapter(), cached[1], torch.zeros(8, 4, 32), pooled=torch.zeros(8, 6))
    with pytest.raises(WorkbenchError, match="has a head for pooled text and pooled= was left out"):
        fit_states(adapter(pooled=6), cached[1], torch.zeros(8, 4, 32))
    with pytest.raises(WorkbenchError, match=r"takes vectors \[n, 24\], not \[8, 7\]"):
        fit_states(adapter(), torch.zeros(8, 7), torch.zeros(8, 4, 32))


# Stage 1


def test_the_network_stays_to_the_bit_and_every_weight_of_the_adapter_learns(cached):
    network, coder, made = folders.unet(32), folders.vae(), adapter()
    before, start = digest(network, coder), digest(made)
    latents = encode_pictures(coder, torch.rand(8, 3, 16, 16))
    learned = dict.fromkeys((name for name, _ in made.named_parameters()), 0.0)
    for name, weight in made.named_parameters():
        weight.register_hook(lambda grad, name=name: learned.update({name: learned[name] + grad.abs().sum().item()}))
    losses = fit_denoise(made, network, schedule(), latents, cached[1], steps=4, drop=0.5)
    assert len(losses) == 4 and np.isfinite(losses).all()
    assert all(value > 0 for value in learned.values()), learned
    assert digest(network, coder) == before and digest(made) != start
    assert not any(p.requires_grad or p.grad is not None for p in network.parameters())


def test_sdxl_is_told_sizes_and_pooled_text(cached):
    network, made = folders.unet(64, 16), adapter(64, pooled=16)
    seen = []
    network.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs["added_cond_kwargs"]),
                                      with_kwargs=True)
    before = made.null_pooled.clone()
    fit_denoise(made, network, schedule(), *cached, steps=2, drop=0.5)
    assert seen[0]["time_ids"].tolist() == [[64, 64, 0, 0, 64, 64]] * 8 and seen[0]["text_embeds"].shape == (8, 16)
    assert not torch.equal(before, made.null_pooled)
    fit_denoise(made, network, schedule(), *cached, steps=1, time_ids=(1, 2, 3, 4, 5, 6))
    assert seen[-1]["time_ids"][0].tolist() == [1, 2, 3, 4, 5, 6]


class Oracle(nn.Module):
    """Knows the one picture that there is, and says its noise, velocity or itself, whatever it is asked."""

    def __init__(self, clean, says):
        super().__init__()
        self.clean, self.says = clean, says
        self.shares = DDPMScheduler(**folders.SCHEDULE).alphas_cumprod

    def forward(self, noisy, when, encoder_hidden_states, added_cond_kwargs):
        kept = self.shares[when].view(-1, 1, 1, 1)
        noise = (noisy - kept.sqrt() * self.clean) / (1 - kept).sqrt()
        said = {"epsilon": noise, "sample": self.clean.expand_as(noisy),
                "v_prediction": kept.sqrt() * noise - (1 - kept).sqrt() * self.clean}[self.says]
        return SimpleNamespace(sample=said + 0 * encoder_hidden_states.sum())


@pytest.mark.parametrize("says", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("asked", ["epsilon", "v_prediction", "sample"])
def test_what_is_to_be_said_follows_the_scheduler(says, asked, cached):
    """A UNet that knows the answer has no loss where it is asked for it, and a loss where it is asked for another."""
    losses = fit_denoise(adapter(), Oracle(cached[0][:1], says), schedule(prediction_type=asked), cached[0][:1],
                         cached[1][:1], steps=20)
    assert max(losses) < 1e-6 if says == asked else np.mean(losses) > 0.1


def test_flow_matching_is_refused(network, cached):
    with pytest.raises(WorkbenchError, match=r"FlowMatchEulerDiscreteScheduler with .*flow matching is not offered"):
        fit_denoise(adapter(), network, FlowMatchEulerDiscreteScheduler(), *cached)


def test_the_loss_falls_on_eight_pictures(cached):
    """Beside an adapter that does not learn, on the same noise and the same times."""
    network = folders.unet(32)
    for name, weight in network.named_parameters():
        if "attn2.to_v" in name:                                        # at random, little follows from what it is told
            weight.data.mul_(4)
    options = dict(steps=40, batch=8, noise=0.0, drop=0.0, seed=3)
    fixed = fit_denoise(adapter(), network, schedule(), *cached, lr=0.0, **options)
    learned = fit_denoise(adapter(), network, schedule(), *cached, lr=1e-2, **options)
    gain = 1 - np.array(learned) / np.array(fixed)
    assert gain[-10:].min() > 0 and gain[-10:].mean() > max(gain[:10].mean(), 0.02), gain


def test_a_seed_makes_it_again(network, cached):
    made = adapter()
    first, again, other = deepcopy(made), deepcopy(made), deepcopy(made)
    losses = [fit_denoise(each, network, schedule(), *cached, steps=3, seed=seed)
              for each, seed in ((first, 1), (again, 1), (other, 2))]
    assert losses[0] == losses[1] != losses[2]
    assert digest(first) == digest(again) != digest(other)


def test_noise_is_of_the_size_of_the_spread_of_vectors():
    """A vector's numbers that never differ get none; the others up to `noise` times what they differ by."""
    seen = []
    made = adapter()
    made.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    vectors = torch.zeros(4000, DIM)
    vectors[:, 0], vectors[:, 1] = 7.0, 10 * torch.randn(4000, generator=torch.Generator().manual_seed(0))
    stub = Oracle(torch.zeros(1, 1, 1, 1), "epsilon")
    for noise in (0.0, 0.3):
        fit_denoise(made, stub, schedule(), torch.zeros(4000, 1, 1, 1), vectors, steps=1, batch=4000, noise=noise)
    assert torch.equal(seen[1][:, 0], vectors[:, 0]) and not seen[1][:, 2:].any()
    off = seen[1][:, 1] - seen[0][:, 1]                                 # the same draw of pictures
    assert off.std().item() == pytest.approx(10 * 0.3 / 3 ** 0.5, rel=0.1)         # sizes are uniform from 0


# Latents


@pytest.mark.parametrize("shift", [None, 0.3])
def test_latents_are_those_that_the_network_knows(shift):
    coder, pictures = folders.vae(scaling_factor=0.13, shift_factor=shift), torch.rand(5, 3, 16, 16)
    latents = encode_pictures(coder, pictures, batch=2)
    assert latents.shape == (5, 4, 8, 8) and torch.equal(latents, encode_pictures(coder, pictures, batch=2))
    mean = coder.encode(2 * pictures - 1).latent_dist.mean
    torch.testing.assert_close(latents, (mean - (shift or 0)) * 0.13, atol=1e-5, rtol=0)
