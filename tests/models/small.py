"""Settings that make every registered model small enough for a test."""

SMALL = {
    "poyo": dict(dim=32, depth=1, latents=4, head_dim=16, cross_heads=2, self_heads=2, dropout=0.0),
    "gru": dict(dim=32),
    "ridge": {},
    "mlp": dict(dim=32),
    "ndt1": dict(dim=32, depth=2, bin_size=0.05),
    "stndt": dict(dim=32, depth=2, bin_size=0.05),
    "ndt2": dict(dim=32, depth=1, decoder_depth=1, heads=2, inner=32, patch=8, patches=2),
    "ndt3": dict(dim=32, depth=1, heads=2, patch=8, patches=2, window=1.0, warmup=0.2),
    "possm": dict(dim=16, width=32, head_dim=16, window=1.0, warmup=0.2, dropout=0.0),
    "lfads": dict(encoder=24, initial=8, controller=16, inputs=2, generator=24, factors=12, bin_size=0.1, drop=0.5,
                  dropout=0.0),
    "spint": dict(dim=32, heads=2, reference_windows=4, reference_bins=40, dropout=0.0),
    "nuclr": dict(dim=32, heads=2, bin_size=0.05, patch=0.25, view=1.0, temporal=1, spatial=1, project=16, dropout=0.0),
    "cebra": dict(iterations=150, batch_size=128, bin_size=0.05),
    "ldns": dict(latents=4, dim=16, depth=2, denoiser_dim=16, denoiser_depth=2, steps=40, bin_size=0.1, window=1.0),
    "mtm": dict(dim=32, width=64, depth=2, heads=2, inner=64, bin_size=0.05, window=1.0),
    "poyo_plus": dict(dim=32, depth=1, latents=4, head_dim=16, cross_heads=2, self_heads=2, dropout=0.0),
    "capoyo": dict(dim=32, depth=1, latents=4, head_dim=16, cross_heads=2, self_heads=2, dropout=0.0, ffn_dropout=0.0),
    "neuroformer": dict(dim=32, depth=1, heads=2, dropout=0.0, window=0.4),
    "neds": dict(dim=32, width=64, depth=2, heads=2, inner=64, window=1.0),
}
