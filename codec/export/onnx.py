"""ONNX graphs of a codec for ONNX Runtime: whole signals or streaming steps, float32 or int8 weights."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from codec.export.graphs import conditions
from codec.export.progress import log
from codec.export.streaming_graphs import StepGraph
from codec.export.verification import optional
from codec.model.codec import Codec

OPSET = 20
WHOLE = {
    "encoder": (["audio"], ["codes"]),
    "decoder": (["codes"], ["audio"]),
    "network": (["audio"], ["latents"]),
    "quantizer": (["latents"], ["codes"]),
}
QUANTIZER = "quantizer"  # attribute of a graph's module; its nodes stay float32


def write_onnx(
    program: torch.export.ExportedProgram,
    path: Path,
    names: Sequence[Sequence[str]],
    about: Mapping[str, str],
) -> None:
    """Write a program as an ONNX file with the `names` of its inputs and outputs, and metadata `about`."""
    log.info("writing %s", path.name)
    onnx = optional("onnx")
    optional("onnxscript")
    with silence():
        onnx_program = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            verbose=False,
            input_names=list(names[0]),
            output_names=list(names[1]),
        )
        assert onnx_program is not None
        model = onnx_program.model_proto
    # Inner shapes are the tracer's formulas: runtimes infer their own, and the int8 pass rejects these.
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output):
        name_axes(value)
    onnx.helper.set_model_props(model, dict(about))
    onnx.save(model, str(path))


def name_axes(value: Any) -> None:
    """Name the dynamic axes of an input or output `batch`, `stages` and `samples` or `frames`."""
    long = "samples" if value.name == "audio" else "frames"
    for axis, name in enumerate(("batch", "stages", long)):
        dimensions = value.type.tensor_type.shape.dim
        if axis < len(dimensions) and dimensions[axis].dim_param:
            dimensions[axis].dim_param = name


def write_whole(
    programs: Mapping[str, torch.export.ExportedProgram], folder: Path, about: Mapping[str, str]
) -> None:
    """Write the graphs of `codec.export.graphs.programs` as `encoder.onnx` and `decoder.onnx`."""
    for name, program in programs.items():
        inputs, outputs = WHOLE[name]
        names = [*inputs, *condition_of(inputs, about)], outputs
        write_onnx(program, folder / f"{name}.onnx", renamed(names, about), about)


def write_steps(graphs: Mapping[str, StepGraph], folder: Path, about: Mapping[str, str]) -> None:
    """Write step graphs, as `decoder_step.onnx`: inputs `state_i`, initially zeros; outputs `next_i`."""
    for name, graph in graphs.items():
        inputs, outputs = WHOLE[name.removesuffix("_step")]
        count = range(len(graph.initial))
        names = [
            [*inputs, *condition_of(inputs, about), *(f"state_{i}" for i in count)],
            [*outputs, *(f"next_{i}" for i in count)],
        ]
        write_onnx(graph.program, folder / f"{name}.onnx", renamed(names, about), about)


def condition_of(inputs: Sequence[str], about: Mapping[str, str]) -> list[str]:
    """Name of the condition's input, in graphs of audio, if the metadata list conditions."""
    return ["condition"] if "conditions" in about and "audio" in inputs else []


def renamed(names: Sequence[Sequence[str]], about: Mapping[str, str]) -> list[list[str]]:
    """Names of inputs and outputs; continuous codes are `latents`, and the latents `features`."""
    other = {"codes": "latents", "latents": "features"} if "latent_dim" in about else {}
    return [[other.get(name, name) for name in some] for some in names]


def to_int8(path: Path, clips: Sequence[Sequence[Tensor]] | None = None) -> None:
    """Convert a graph's weights to int8 with one scale per output channel, except in the quantizer.

    With `clips`, inputs of calls that calibrate the ranges of activations, convolutions compute in int8 too.
    Without them, matrix products compute the ranges in each call, which suits the few samples of a step.
    """
    log.info("making the weights of %s int8", path.name)
    onnx, quantization = optional("onnx"), optional("onnxruntime.quantization")
    model = onnx.load(str(path))
    convolutions = [node.name for node in model.graph.node if node.op_type == "Conv"]
    # In the first and last convolution, at the audio itself, 8 bits would be audible and save little.
    ends = [convolutions[0], convolutions[-1]] if clips is not None else []
    options: dict[str, Any] = {
        "nodes_to_exclude": [*ends, *(node.name for node in model.graph.node if of_quantizer(node))],
        "per_channel": True,
        "weight_type": quantization.QuantType.QInt8,
    }
    with silence():
        if clips is None:
            products = ["MatMul", "Gemm"]
            quantization.quantize_dynamic(model, str(path), op_types_to_quantize=products, **options)
            return
        names = [value.name for value in model.graph.input]
        quantization.quantize_static(
            model,
            str(path),
            Clips({name: one.numpy() for name, one in zip(names, clip, strict=True)} for clip in clips),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,
            op_types_to_quantize=["Conv"],
            **options,
        )


class Clips:
    """Data reader for ONNX Runtime's calibration: returns one input after the other, then None."""

    def __init__(self, feeds: Iterable[dict[str, np.ndarray]]):
        self.feeds = iter(feeds)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next input."""
        return next(self.feeds, None)


def of_quantizer(node: Any) -> bool:
    """Return True for nodes of the quantizer, whose distances need full precision."""
    scopes = {entry.key: entry.value for entry in node.metadata_props}.get("pkg.torch.onnx.name_scopes", "")
    return QUANTIZER in scopes


class Session:
    """ONNX Runtime session on CPU `threads`, called with tensors in the order of the graph's inputs."""

    def __init__(self, path: Path, threads: int = 1):
        runtime = optional("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.inputs = self.session.get_inputs()

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run the graph; returns all outputs."""
        feeds = {
            value.name: np.ascontiguousarray(tensor.numpy())
            for value, tensor in zip(self.inputs, tensors, strict=True)
        }
        return tuple(torch.from_numpy(array) for array in self.session.run(None, feeds))

    @property
    def initial(self) -> list[Tensor]:
        """Initial states of a step graph: zeros."""
        types = {"tensor(float)": torch.float32, "tensor(int64)": torch.int64}
        states = [value for value in self.inputs if value.name.startswith("state_")]
        return [torch.zeros(value.shape, dtype=types[value.type]) for value in states]


def about(codec: Codec) -> dict[str, str]:
    """Metadata of an exported file about its codec."""
    dim, sizes = codec.quantizer.latent_dim, codec.quantizer.codebook_sizes
    return {
        "codec_id": codec.codec_id(),
        "sample_rate": str(codec.sample_rate),
        "hop_length": str(codec.hop_length),
        **({"latent_dim": str(dim)} if dim else {"codebook_sizes": json.dumps(sizes)}),
        **({"conditions": json.dumps(names)} if (names := conditions(codec)) else {}),
    }


@contextmanager
def silence() -> Iterator[None]:
    """Suppress output and warnings of exporters."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "root")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
