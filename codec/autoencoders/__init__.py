"""Encoder–decoder pairs: audio `[B, C, T]` to latents `[B, D, F]` and back."""
