"""From the vector of a picture to what a text encoder would have said of it, for a generator that was told by text.

    vector [B, dim] → LayerNorm → MLP → tokens [B, n, width], + positions → pre-norm transformer → tokens [B, n, width]
                    → LayerNorm → MLP → pooled text [B, pooled], for SDXL

The generator's UNet stays as it is. Two ways to train, each from latents and vectors that were computed once:

    `fit_states`    the text encoder's own states of the pictures' captions, by regression; no UNet is needed
    `fit_denoise`   the loss of diffusion through the frozen UNet, after `fit_states` or alone

For classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598) the adapter has learned tokens that say nothing.
Both put noise on the vectors: those that are read from spikes are never as exact as the pictures' own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from workbench.errors import WorkbenchError
from workbench.images.embedding import ModelNotHere


class TokenAdapter(nn.Module):
    """embedder: the name of the image embedder whose vectors [dim] it takes; pooled: width of SDXL's second input.

    Eight tokens are a tenth of the 77 of a caption, in parameters too, and cross-attention takes any number.
    """

    def __init__(self, dim: int, n_tokens: int, width: int, layers: int = 4, bottleneck: int = 256,
                 pooled: int | None = None, *, embedder: str = ""):
        super().__init__()
        self.dim, self.n_tokens, self.width, self.pooled, self.embedder = dim, n_tokens, width, pooled, embedder
        self.settings = dict(dim=dim, n_tokens=n_tokens, width=width, layers=layers, bottleneck=bottleneck,
                             pooled=pooled, embedder=embedder)
        head = lambda out: nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, bottleneck), nn.GELU(),
                                         nn.Linear(bottleneck, out))
        self.expand = head(n_tokens * width)
        self.position = nn.Parameter(0.02 * torch.randn(n_tokens, width))
        layer = nn.TransformerEncoderLayer(width, width // 64 if width % 64 == 0 else 1, 4 * width, dropout=0.0,
                                           activation="gelu", batch_first=True, norm_first=True)
        self.refine = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False) if layers else nn.Identity()
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))
        self.null = nn.Parameter(0.02 * torch.randn(n_tokens, width))
        self.pool = head(pooled) if pooled else None
        self.null_pooled = nn.Parameter(0.02 * torch.randn(pooled)) if pooled else None

    @classmethod
    def from_unet_config(cls, config: Mapping, dim: int, n_tokens: int = 8, **settings) -> TokenAdapter:
        """An adapter of the widths that a UNet's config tells; n_tokens=77 for as many as a caption has."""
        width, pooled = text_widths(config)
        return cls(dim, n_tokens, width, pooled=pooled, **settings)

    def forward(self, vectors: Tensor) -> Tensor:
        """Vectors [B, dim] → tokens [B, n, width]."""
        return self.out(self.refine(self.expand(vectors).unflatten(1, self.position.shape) + self.position))

    def condition(self, vectors: Tensor, left_out: Tensor) -> tuple[Tensor, Tensor | None]:
        """Tokens [B, n, width] and pooled text [B, pooled], or None; those that say nothing where left_out [B]."""
        tokens = torch.where(left_out[:, None, None], self.null, self(vectors))
        return tokens, torch.where(left_out[:, None], self.null_pooled, self.pool(vectors)) if self.pooled else None

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model.safetensors and config.json."""
        folder = Path(folder).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.cpu().contiguous() for k, v in self.state_dict().items()}, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(self.settings, indent=2))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> TokenAdapter:
        """What `save_pretrained` wrote, on the CPU."""
        folder = Path(folder).expanduser()
        if not all((folder / name).is_file() for name in ("config.json", "model.safetensors")):
            raise ModelNotHere(f"there is no token adapter in {folder.absolute()}; train one with fit_states or "
                               "fit_denoise of workbench.images.token_adapter and save it there with save_pretrained")
        adapter = cls(**json.loads((folder / "config.json").read_text()))
        adapter.load_state_dict(load_file(folder / "model.safetensors"))
        return adapter


def text_widths(config: Mapping) -> tuple[int, int | None]:
    """Width of the text states that a UNet attends to, and of the pooled text of SDXL, or None.

    WorkbenchError for a UNet that is told by something else than text alone.
    """
    width, told = config.get("cross_attention_dim"), {name: config.get(name) for name in (
        "addition_embed_type", "encoder_hid_dim_type", "class_embed_type")}
    widths, kind = set(width) if isinstance(width, (list, tuple)) else {width}, told["addition_embed_type"]
    if len(widths) != 1 or None in widths or list(told.values()) not in ([None] * 3, ["text_time", None, None]):
        raise WorkbenchError(f"this UNet is not told by text states of one width alone (cross_attention_dim {width}, "
                             f"{', '.join(f'{name} {value}' for name, value in told.items())}); give one of Stable "
                             "Diffusion 1, 2 or XL, or for Kandinsky use the decoder 'kandinsky'")
    times = 6 * (config.get("addition_time_embed_dim") or 0)            # sizes and crop of the picture, six numbers
    return widths.pop(), config["projection_class_embeddings_input_dim"] - times if kind == "text_time" else None


@torch.no_grad()
def encode_pictures(vae, pictures: Tensor, *, batch: int = 8) -> Tensor:
    """Pictures [n, 3, H, W] from 0 to 1 → latents [n, C, h, w] in the scale that the UNet knows, on the CPU.

    The mode of what the VAE says of each, so that they are the same at every call.
    """
    found = []
    for part in pictures.split(batch):
        latents = vae.encode((2 * part - 1).to(vae.device, vae.dtype)).latent_dist.mode().float().cpu()
        found.append((latents - (vae.config.get("shift_factor") or 0.0)) * vae.config.scaling_factor)
    return torch.cat(found)


def fit_states(adapter: TokenAdapter, embeddings: Tensor, states: Tensor, *, pooled: Tensor | None = None,
               empty: Tensor | None = None, steps: int = 1000, batch: int = 64, lr: float = 1e-3, noise: float = 0.5,
               seed: int = 0, progress: Callable[[int, int], None] | None = None) -> list[float]:
    """Learn what a text encoder says of captions: mean squared error; returns it at every step.

    embeddings [n, dim] of pictures, states [n, n_tokens, width] of their captions, pooled [n, P] for SDXL; empty
    [n_tokens, width]: of the empty caption, taken over as the tokens that say nothing. noise, seed: see `fit_denoise`.
    """
    _refuse_width(adapter, embeddings)
    if list(states.shape) != [len(embeddings), adapter.n_tokens, adapter.width]:
        raise WorkbenchError(f"states of shape {list(states.shape)} for {len(embeddings)} vectors and an adapter of "
                             f"{adapter.n_tokens} tokens of {adapter.width}; the first tokens of a caption say most of "
                             f"it: give states[:, :{adapter.n_tokens}], or make the adapter with n_tokens="
                             f"{states.shape[1] if states.ndim == 3 else 77}")
    if bool(adapter.pooled) != (pooled is not None):
        raise WorkbenchError(f"the adapter has {'a' if adapter.pooled else 'no'} head for pooled text and pooled= was "
                             f"{'left out' if pooled is None else 'given'}; they go together")
    if empty is not None:
        adapter.null.data.copy_(empty)
    embeddings = embeddings.detach().float().cpu()
    nothing, spread = torch.zeros(min(batch, len(states)), dtype=torch.bool), embeddings.std(0, correction=0)

    def loss(random: torch.Generator) -> Tensor:
        at = torch.randint(len(states), nothing.shape, generator=random)
        told, summed = adapter.condition(*_to(adapter, _blurred(embeddings[at], spread, noise, random), nothing))
        off = mse_loss(told, *_to(adapter, states[at].float()))
        return off if pooled is None else off + mse_loss(summed, *_to(adapter, pooled[at].float()))

    return _fit(adapter, loss, steps, lr, seed, progress)


def fit_denoise(adapter: TokenAdapter, unet, scheduler, latents: Tensor, embeddings: Tensor, *, steps: int = 1000,
                batch: int = 16, lr: float = 1e-4, drop: float = 0.1, noise: float = 0.5,
                time_ids: Sequence[int] | None = None, seed: int = 0,
                progress: Callable[[int, int], None] | None = None) -> list[float]:
    """Learn what makes the frozen UNet denoise best; returns the loss at every step.

    latents [n, C, h, w] of `encode_pictures`, embeddings [n, dim]. What the UNet is to say follows the scheduler's
    `prediction_type`. drop: share of pictures of which nothing is told. noise: on the vectors, of up to so many times
    their spread over pictures, of another size for each. time_ids: SDXL's six numbers (height, width, top, left,
    height, width), the latents' size × 8 where none are given. seed: of everything drawn here.
    """
    from diffusers import DDPMScheduler

    _refuse_width(adapter, embeddings)
    kind = prediction_type(scheduler.config, type(scheduler).__name__)
    scheduler = DDPMScheduler.from_config(scheduler.config)
    # Frozen, but not run without gradients: they have to pass through it on their way to the adapter.
    unet.requires_grad_(False).eval()
    if time_ids is None:
        height, width = (8 * edge for edge in latents.shape[2:])
        time_ids = (height, width, 0, 0, height, width)
    latents, embeddings = latents.detach().float().cpu(), embeddings.detach().float().cpu()
    dtype, spread = getattr(unet, "dtype", torch.float32), embeddings.std(0, correction=0)

    def loss(random: torch.Generator) -> Tensor:
        at = torch.randint(len(latents), (min(batch, len(latents)),), generator=random)
        clean, added = latents[at], torch.randn(len(at), *latents.shape[1:], generator=random)
        when = torch.randint(scheduler.config.num_train_timesteps, (len(at),), generator=random)
        noisy = scheduler.add_noise(clean, added, when)
        target = {"epsilon": lambda: added, "sample": lambda: clean,
                  "v_prediction": lambda: scheduler.get_velocity(clean, added, when)}[kind]()
        left_out = torch.rand(len(at), generator=random) < drop
        vectors = _blurred(embeddings[at], spread, noise, random)
        noisy, target, when, vectors, left_out = _to(adapter, noisy, target, when, vectors, left_out)
        tokens, pooled = adapter.condition(vectors, left_out)
        sized = None if pooled is None else {"text_embeds": pooled.to(dtype),
                                             "time_ids": pooled.new_tensor([list(time_ids)] * len(at), dtype=dtype)}
        said = unet(noisy.to(dtype), when, encoder_hidden_states=tokens.to(dtype), added_cond_kwargs=sized).sample
        return mse_loss(said.float(), target)

    return _fit(adapter, loss, steps, lr, seed, progress)


def prediction_type(config: Mapping, name: str = "") -> str:
    """What a scheduler of that class says that its UNet predicts: epsilon (noise), v_prediction (velocity) or sample.

    WorkbenchError for anything else. Flow matching shows in the name of the class alone.
    """
    kind, name = config.get("prediction_type", "epsilon"), name or config.get("_class_name", "a scheduler")
    if "flow" in name.lower() or kind not in ("epsilon", "v_prediction", "sample"):
        raise WorkbenchError(f"{name} with prediction_type {kind!r} predicts something else than noise, velocity or "
                             "sample (flow matching is not offered here); give a model whose scheduler says epsilon, "
                             "v_prediction or sample")
    return kind


def _blurred(vectors: Tensor, spread: Tensor, noise: float, random: torch.Generator) -> Tensor:
    """Vectors with noise of another size for each, from none to `noise` times the spread of each number."""
    size = noise * torch.rand(len(vectors), 1, generator=random)
    return vectors + size * spread * torch.randn(vectors.shape, generator=random)


def _to(adapter: TokenAdapter, *values: Tensor) -> list[Tensor]:
    return [value.to(adapter.null.device) for value in values]


def _refuse_width(adapter: TokenAdapter, embeddings: Tensor) -> None:
    if embeddings.ndim != 2 or embeddings.shape[1] != adapter.dim:
        raise WorkbenchError(f"the adapter takes vectors [n, {adapter.dim}], not {list(embeddings.shape)}; embed the "
                             f"pictures with {adapter.embedder or 'its own embedder'}, or make an adapter for these")


def _fit(adapter: TokenAdapter, loss: Callable[[torch.Generator], Tensor], steps: int, lr: float, seed: int,
         progress: Callable[[int, int], None] | None) -> list[float]:
    """Adam along a cosine, without decay, which would pull at tokens that are not told. Draws come from a generator of
    the CPU: the same on any device.
    """
    random = torch.Generator().manual_seed(seed)
    adam = torch.optim.Adam(adapter.parameters(), lr=lr)
    plan = torch.optim.lr_scheduler.CosineAnnealingLR(adam, max(steps, 1), lr / 50)
    losses = []
    for step in range(steps):
        adam.zero_grad(set_to_none=True)
        off = loss(random)
        off.backward()
        nn.utils.clip_grad_norm_(adapter.parameters(), 1.0)
        adam.step()
        plan.step()
        losses.append(off.item())
        if progress:
            progress(step + 1, steps)
    return losses
