"""Checks before an export: options, packages and architecture."""

from __future__ import annotations

from typing import NamedTuple

from codec.config import ConfigError
from codec.export.streaming_graphs import require_causal
from codec.export.verification import optional
from codec.huggingface.convert import shape_of
from codec.model.codec import Codec

TAKES = {
    "onnx": {"streaming", "int8"},
    "torch": {"streaming"},
    "openvino": {"int8", "bf16"},
    "hf": set[str](),
    "codec": set[str](),
}
ONNX = ["onnx", "onnxscript", "onnxruntime"]
PACKAGES = {"onnx": ("export", ONNX), "openvino": ("openvino", [*ONNX, "openvino"])}
PACKAGES |= {"hf": ("export", ["transformers"])}


class Options(NamedTuple):
    """Options of an export."""

    streaming: bool = False
    frames_per_step: int = 1
    int8: bool = False
    bf16: bool = False


def check_options(form: str, options: Options) -> None:
    """Raise ConfigError for options that a format does not support, invalid values and missing packages."""
    for name in ("streaming", "int8", "bf16"):
        if getattr(options, name) and name not in TAKES[form]:
            formats = " and ".join(
                f"--to {other}" for other, options_of_format in TAKES.items() if name in options_of_format
            )
            raise ConfigError(f"--{name} is for {formats}: --to {form} has none")
    if options.frames_per_step < 1:
        raise ConfigError(f"--frames-per-step: expected 1 or more, got {options.frames_per_step}")
    if options.frames_per_step > 1 and not options.streaming:
        raise ConfigError("--frames-per-step is for --streaming")
    extra, packages = PACKAGES.get(form, ("", []))
    for package in packages:
        optional(package, extra)


def check_codec(codec: Codec, form: str, options: Options) -> None:
    """Raise ConfigError for a codec that a format cannot represent."""
    if (options.int8 or options.bf16) and not codec.quantizer.codebook_sizes:
        raise ConfigError("--int8 and --bf16 are for codes: continuous latents are exported in float32")
    if form == "hf":
        codec.quantizer.require_codes("export to transformers")
        shape_of(codec)
    if options.streaming:
        require_causal(codec)
