"""Settings that make every registered model small enough for a test."""

SMALL = {
    "poyo": dict(dim=32, depth=1, latents=4, head_dim=16, cross_heads=2, self_heads=2, dropout=0.0),
    "gru": dict(dim=32),
    "ridge": {},
    "ndt1": dict(dim=32, depth=2, bin_size=0.05),
    "stndt": dict(dim=32, depth=2, bin_size=0.05),
    "lfads": dict(encoder=24, initial=8, controller=16, inputs=2, generator=24, factors=12, bin_size=0.1, drop=0.5,
                  dropout=0.0),
    "mtm": dict(dim=32, width=64, depth=2, heads=2, inner=64, bin_size=0.05, window=1.0),
    "neds": dict(dim=32, width=64, depth=2, heads=2, inner=64, window=1.0),
}
