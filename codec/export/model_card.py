"""Model card, the README.md of an exported codec: properties, training data, scores, usage."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from codec.export.graphs import conditions
from codec.export.streaming_graphs import step_names
from codec.huggingface.convert import shape_of
from codec.metrics.registry import METRICS, described
from codec.model.codec import Codec, count_parameters
from codec.model.untrusted import read_yaml

LOADING = {
    "onnx": """import numpy
import onnxruntime

encoder = onnxruntime.InferenceSession("encoder.onnx")
decoder = onnxruntime.InferenceSession("decoder.onnx")
audio = numpy.zeros((1, {channels}, {rate}), numpy.float32)  # [batch, channels, samples] at {rate} Hz
(codes,) = encoder.run(None, {{"audio": audio}})  # int64 [batch, {stages}, frames]
(audio,) = decoder.run(None, {{"codes": codes}}){fewer}""",
    "torch": """import torch  # .pt2 files can hold pickled objects: load trusted files only

encode = torch.export.load("encoder.pt2").module()
decode = torch.export.load("decoder.pt2").module()
audio = torch.zeros(1, {channels}, {rate})  # [batch, channels, samples] at {rate} Hz
codes = encode(audio)  # int64 [batch, {stages}, frames]
audio = decode(codes){fewer}""",
    "openvino": """import numpy
import openvino

core = openvino.Core()
fast = {{"INFERENCE_PRECISION_HINT": "{precision}"}}  # never bf16 for the quantizer
network, decoder = (core.compile_model(f"{{part}}.xml", "CPU", fast) for part in ("network", "decoder"))
quantizer = core.compile_model("quantizer.xml", "CPU", {{"INFERENCE_PRECISION_HINT": "f32"}})
audio = numpy.zeros((1, {channels}, {rate}), numpy.float32)  # [batch, channels, samples] at {rate} Hz
codes = quantizer(network(audio)[0])[0]  # int64 [batch, {stages}, frames]
audio = decoder(codes)[0]{fewer}""",
    "codec": """import codec  # of neural-audio-codec
import torch

model = codec.load(".")
audio = torch.zeros(1, {channels}, {rate})  # [batch, channels, samples] at {rate} Hz
with torch.inference_mode():
    codes = model.encode(audio)  # int64 [batch, {stages}, frames]
    audio = model.decode(codes){fewer}""",
    "hf": """import torch
from transformers import AutoModel

model = AutoModel.from_pretrained(".")
audio = torch.zeros(1, {channels}, {rate} // {hop} * {hop})  # [batch, channels, samples] at {rate} Hz
with torch.inference_mode():
    codes = model.encode(audio{bandwidth}).audio_codes
    audio = model(audio{bandwidth}).audio_values
# Pad audio with zeros to a multiple of {hop} samples: transformers pads each layer, which gives
# another last frame. Name the bandwidth: without it an EnCodec uses its smallest.""",
}
# Of graphs with a condition as input: its value, the call of the encoder, and the call with the condition.
CALLS = {
    "onnx": ("numpy.zeros(1, numpy.int64)", '{"audio": audio}', '{"audio": audio, "condition": condition}'),
    "torch": ("torch.zeros(1, dtype=torch.int64)", "encode(audio)", "encode(audio, condition)"),
    "openvino": ("numpy.zeros(1, numpy.int64)", "network(audio)", "network([audio, condition])"),
}
RATES = {"num_quantizers": "stages", "kbit/s": "kbit/s", "kbit/s_entropy": "entropy-coded"}
STREAMING = """
`encoder_step` and `decoder_step` code {frames} frame(s), {samples} samples, per call: they take `audio` or
`codes` and the states, zeros in the beginning, and return `codes` or `audio` and the next call's states.
"""
DECODING = """
`decoder_step` decodes {frames} frame(s), {samples} samples, per call: it takes `codes` and the states, zeros
in the beginning, and returns `audio` and the next call's states. There is no `encoder_step`, as the encoder
is not causal: `encoder` codes whole signals.
"""


def model_card(
    codec: Codec,
    source: Path,
    *,
    form: str,
    options: Any,
    checks: Sequence[str],
    license_id: str | None = None,
) -> str:
    """Model card as Markdown, with front matter for the Hugging Face hub."""
    matter: dict[str, Any] = {"tags": ["audio", "neural-audio-codec"]}
    matter |= {"license": license_id} if license_id else {}
    matter |= {"library_name": "transformers"} if form == "hf" else {}
    names: dict[str, Any] = {
        "channels": codec.audio_channels,
        "rate": codec.sample_rate,
        "stages": codec.quantizer.num_quantizers,
    }
    names |= {"hop": codec.hop_length, "precision": "bf16" if options.bf16 else "f32"}
    has_stages = codec.quantizer.num_quantizers > 1
    names["fewer"] = "  # or of codes[:, :n]: fewer stages, for fewer bits" if has_stages else ""
    encodec = form == "hf" and shape_of(codec) == "encodec"
    names["bandwidth"] = ", bandwidth=model.config.target_bandwidths[-1]" if encodec else ""
    parts = [
        f"---\n{yaml.safe_dump(matter, sort_keys=False)}---\n",
        f"# {card_name(source)}: a neural audio codec\n",
        *facts(codec, options),
        "## Trained on\n",
        trained_on(source),
        *scores(source),
        "## Load\n",
        f"```python\n{loading(codec, form, names)}\n```",
        *([streaming(codec, options)] if options.streaming else []),
        "## Checked\n",
        "Against the codec that this was made from, on speech-like clips, before it was kept:\n",
        *(f"- {line}" for line in checks),
        f"\nLicense: {license_id or 'not stated: ask whoever trained it'}",
    ]
    return "\n".join(parts) + "\n"


def loading(codec: Codec, form: str, names: dict[str, Any]) -> str:
    """Program that loads and calls the exported codec."""
    program = LOADING[form].format(**names)
    if codec.quantizer.latent_dim:
        shape = f"float32 [batch, {codec.quantizer.latent_dim}, frames]"
        program = program.replace("int64 [batch, 0, frames]", shape).replace("codes", "latents")
    if form in CALLS and (names_of := conditions(codec)):
        zeros, call, call_with_condition = CALLS[form]
        meaning = ", ".join(f"{number}: {name}" for number, name in enumerate(names_of))
        line = f"condition = {zeros}  # int64 [batch], {meaning}"
        program = program.replace(" Hz\n", f" Hz\n{line}\n", 1).replace(call, call_with_condition)
    return program


def streaming(codec: Codec, options: Any) -> str:
    """Instructions for calling the step graphs."""
    frames = options.frames_per_step
    both = "encoder_step" in step_names(codec)
    text = (STREAMING if both else DECODING).format(frames=frames, samples=frames * codec.hop_length)
    if conditions(codec):
        text = text.replace("`audio` or\n", "`audio` with\n`condition`, which may change, or ")
    return text.replace("`codes`", "`latents`") if codec.quantizer.latent_dim else text


def card_name(source: Path) -> str:
    """Name of the run or of the model folder."""
    path = source.resolve()
    return (path.parent if path.name in ("model", "checkpoints") else path).name


def facts(codec: Codec, options: Any) -> list[str]:
    """Table of the codec's properties."""
    quantizer, names = codec.quantizer, codec.conditioning.names
    parts = {name: number / 1e6 for name, number in count_parameters(codec).items()}
    sizes = ", ".join(map(str, sorted(set(quantizer.codebook_sizes))))
    coded = {"latents": f"{quantizer.latent_dim} numbers a frame", "bitrate": "-"}
    if quantizer.codebook_sizes:
        coded = {"codes": f"{quantizer.num_quantizers} a frame, of {sizes} values"}
        coded |= {"bitrate": f"{codec.bitrate() / 1000:.4g} kbit/s with all of them"}
    rows = {
        "sample rate": f"{codec.sample_rate} Hz, {codec.audio_channels} channel(s)",
        "frames": f"{codec.frame_rate:.4g} a second, {codec.hop_length} samples each",
        **coded,
        **({"condition": " or ".join(conditions(codec)) or codec.condition or names[0]} if names else {}),
        "parameters": f"{sum(parts.values()):.2f} M, codebooks included: "
        + ", ".join(f"{name} {millions:.3f}" for name, millions in parts.items()),
        "weights": "int8 where that is not the quantizer" if options.int8 else "float32",
        "codec id": f"`{codec.codec_id()}`",
    }
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items()), ""]


def run_folder(source: Path) -> Path:
    """Run folder of a model: `source`, its parent or grandparent; `source` if none is a run."""
    for folder in (source, source.parent, source.parent.parent):
        if (folder / "config.yaml").is_file() and (folder / "checkpoints").is_dir():
            return folder
    return source


def trained_on(source: Path) -> str:
    """Names of the data folders and number of steps of a run, if recorded."""
    config = run_folder(source) / "config.yaml"
    try:
        saved = read_yaml(config)
        data, steps = saved["data"], saved["trainer"]["max_steps"]
    except (OSError, ValueError, KeyError, TypeError):
        return "Not recorded: describe the training data here.\n"
    roots = data.get("root")
    # Names, not paths, which are private; of a source, its class.
    roots = roots if isinstance(roots, list) else [roots]
    named = [root.get("_target_") if isinstance(root, dict) else root for root in roots]
    names = ", ".join(Path(str(root)).name for root in named)
    generated = " (audio that codec-train made itself)" if data.get("generate") else ""
    return f"`{names}`{generated}, up to {steps} steps. Describe these recordings here.\n"


def scores(source: Path) -> list[str]:
    """Table of scores per number of stages from the run's evaluation; empty without one."""
    summary = run_folder(source) / "evaluation" / "summary.json"
    try:
        results = json.loads(summary.read_text(encoding="utf-8"))
        points, files = results["rate_distortion"], results["files"]
        scored = {name for point in points for name in point}
        metrics = described(scored & {*METRICS, *results.get("metrics", {})}, [results])
        names = {name: title for name, title in RATES.items() if name in scored}
        names |= {metric.name: metric.heading for metric in metrics}
        rows = [" | ".join(cell(point.get(name)) for name in names) for point in points]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    head = [" | ".join(names.values()), "|".join(["---"] * len(names)), *rows]
    return [f"## Scores on {files} held-out files\n", *(f"| {row} |" for row in head), ""]


def cell(value: Any) -> str:
    """Format a number with at most four digits; `-` for None."""
    return f"{value:.4g}" if isinstance(value, int | float) else "-"
