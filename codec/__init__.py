"""Neural audio codecs: train them on a folder of recordings, encode audio to codes, decode it back."""

from codec.model import Codec, build_codec, load

__all__ = ["Codec", "build_codec", "load"]
__version__ = "0.1.0"
