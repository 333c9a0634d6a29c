"""The codec: autoencoder and quantizer, saved and loaded, in batches and as streams."""
