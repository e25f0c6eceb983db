"""From spikes to pictures: what a picture is to an image model, generators that turn such vectors into pictures, and
how good what comes out is.

    pictures → embedding (embedding.py) ← spikes (models/neurobridge_pictures.py)
    embedding → picture (decoders.py, diffusion.py, token_adapter.py) → metrics.py → report.py
"""
