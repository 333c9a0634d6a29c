"""Quantizers: latents `[B, D, F]` to codes `[B, K, F]` and back, under one contract (`base.py`)."""
