"""Layers of encoders and decoders, each with its context, streaming form and form for exported graphs."""
