"""The README.md of an exported codec: what it is, what it was trained on, how good it is, how to load it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from codec.model import Codec

LOADING = {
    "onnx": """import onnxruntime

encoder = onnxruntime.InferenceSession("encoder.onnx")  # [batch, {channels}, samples], {rate} Hz
decoder = onnxruntime.InferenceSession("decoder.onnx")
(codes,) = encoder.run(None, {{"audio": audio}})         # int64 [batch, {stages}, frames]
(audio,) = decoder.run(None, {{"codes": codes}})""",
    "torch": """import torch  # .pt2 files can hold pickled objects: load only what you trust

encode = torch.export.load("encoder.pt2").module()  # audio float32 [batch, {channels}, samples] at {rate} Hz
decode = torch.export.load("decoder.pt2").module()
audio = decode(encode(audio))                       # codes are int64 [batch, {stages}, frames]""",
    "openvino": """import openvino

core = openvino.Core()
fast = {{"INFERENCE_PRECISION_HINT": "bf16"}}  # where the CPU has it; never for the quantizer
network, decoder = (core.compile_model(f"{{part}}.xml", "CPU", fast) for part in ("network", "decoder"))
quantizer = core.compile_model("quantizer.xml", "CPU", {{"INFERENCE_PRECISION_HINT": "f32"}})
codes = quantizer(network(audio)[0])[0]      # audio float32 [batch, {channels}, samples] at {rate} Hz
audio = decoder(codes)[0]""",
    "codec": """import codec

model = codec.load(".")  # of neural-audio-codec
codes = model.encode(audio)  # audio float32 [batch, {channels}, samples] at {rate} Hz
audio = model.decode(codes)""",
    "hf": """from transformers import AutoModel

model = AutoModel.from_pretrained(".")  # audio [batch, {channels}, samples] at {rate} Hz
# Pad audio with zeros to a multiple of {hop} samples: transformers pads each layer, which gives
# another last frame. Name the bandwidth to `encode`: without it an EnCodec uses its smallest.""",
}
STREAMING = """
`encoder_step` and `decoder_step` code {frames} frame(s), {samples} samples, per call: they take `audio` or
`codes` and the states, zeros in the beginning, and return `codes` or `audio` and the next call's states.
"""


def model_card(
    codec: Codec,
    source: Path,
    *,
    form: str,
    options: Any,
    checks: Sequence[str],
    licence: str | None = None,
) -> str:
    """Markdown with the front matter that the Hugging Face hub reads."""
    matter: dict[str, Any] = {"tags": ["audio", "neural-audio-codec"]}
    matter |= {"license": licence} if licence else {}
    matter |= {"library_name": "transformers"} if form == "hf" else {}
    names = {
        "channels": codec.audio_channels,
        "rate": codec.sample_rate,
        "stages": codec.quantizer.num_quantizers,
    }
    names["hop"] = codec.hop_length
    parts = [
        f"---\n{yaml.safe_dump(matter, sort_keys=False)}---\n",
        f"# {card_name(source)}: a neural audio codec\n",
        *facts(codec, options),
        "## Trained on\n",
        trained_on(source),
        *scores(source),
        "## Load\n",
        f"```python\n{LOADING[form].format(**names)}\n```",
        *([streaming(codec, options)] if options.streaming else []),
        "## Checked\n",
        "Against the codec that this was made from, on speech-like clips, before it was kept:\n",
        *(f"- {line}" for line in checks),
        f"\nLicence: {licence or 'not stated: ask whoever trained it'}",
    ]
    return "\n".join(parts) + "\n"


def streaming(codec: Codec, options: Any) -> str:
    """How to call the step graphs."""
    frames = options.frames_per_step
    return STREAMING.format(frames=frames, samples=frames * codec.hop_length)


def card_name(source: Path) -> str:
    """The run's or the model folder's name."""
    path = source.resolve()
    return (path.parent if path.name in ("model", "checkpoints") else path).name


def facts(codec: Codec, options: Any) -> list[str]:
    """A table of what the codec is."""
    quantizer = codec.quantizer
    millions = sum(parameter.numel() for parameter in codec.parameters()) / 1e6
    sizes = ", ".join(map(str, sorted(set(quantizer.codebook_sizes))))
    rows = {
        "sample rate": f"{codec.sample_rate} Hz, {codec.audio_channels} channel(s)",
        "frames": f"{codec.frame_rate:.4g} a second, {codec.hop_length} samples each",
        "codes": f"{quantizer.num_quantizers} a frame, of {sizes} values",
        "bitrate": f"{codec.bitrate() / 1000:.4g} kbit/s with all of them",
        "parameters": f"{millions:.3f} M",
        "weights": "int8 where that is not the quantizer" if options.int8 else "float32",
        "codec id": f"`{codec.codec_id()}`",
    }
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items()), ""]


def run_folder(source: Path) -> Path:
    """The run that a model is of: the folder itself, or the one around its `model` or checkpoint."""
    for folder in (source, source.parent, source.parent.parent):
        if (folder / "config.yaml").is_file() and (folder / "checkpoints").is_dir():
            return folder
    return source


def trained_on(source: Path) -> str:
    """The data's folder names and the steps of a run, as far as its folder tells."""
    config = run_folder(source) / "config.yaml"
    try:
        saved = yaml.safe_load(config.read_text(encoding="utf-8"))
        data, steps = saved["data"], saved["trainer"]["max_steps"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return "Not recorded: say here what it was trained on.\n"
    roots = data.get("root")
    # Names, not paths: where a folder lies is nobody else's business.
    names = ", ".join(Path(str(root)).name for root in (roots if isinstance(roots, list) else [roots]))
    generated = " (audio that codec-train made itself)" if data.get("generate") else ""
    return f"`{names}`{generated}, up to {steps} steps. Say here what these recordings are.\n"


def scores(source: Path) -> list[str]:
    """The table of a run's own evaluation, if it has one."""
    summary = run_folder(source) / "evaluation" / "summary.json"
    try:
        found = json.loads(summary.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    numbers = {name: value for name, value in flat(found).items() if isinstance(value, int | float)}
    rows = [f"| {name} | {value:.4g} |" for name, value in numbers.items()]
    return ["## Scores on held-out files\n", "| | |", "|---|---|", *rows, ""] if rows else []


def flat(found: Any, path: str = "") -> dict[str, Any]:
    """Leaves of nested mappings by their paths; lists are left out."""
    if isinstance(found, dict):
        parts = (flat(value, f"{path} {key}".strip()) for key, value in found.items())
        return {name: value for part in parts for name, value in part.items()}
    return {} if isinstance(found, list) else {path: found}
