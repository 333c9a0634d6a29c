"""Discriminators: audio `[B, C, T]` to logits and feature maps, under one contract (`base.py`)."""
