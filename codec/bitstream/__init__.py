"""Codes in few bytes: entropy coding, and the `.codec` files that hold it."""
