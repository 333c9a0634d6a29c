"""Entropy coding of codes, and the `.codec` file format."""
