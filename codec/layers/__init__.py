"""Layers of encoders and decoders; each brings its context, its streaming form and its form for graphs."""
