"""Neural audio codecs: train them on a folder of recordings, encode audio to codes, decode it back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from codec.system.environment import complete_environment

if TYPE_CHECKING:
    from codec.model.codec import Codec
    from codec.model.saving import build_codec, load

__all__ = ["Codec", "build_codec", "load"]
__version__ = "0.1.0"

complete_environment()


def __getattr__(name: str) -> Any:
    """Import torch only for those who ask for a codec: `codec-doctor` does not."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from codec.model import codec, saving

    return getattr(codec if name == "Codec" else saving, name)
