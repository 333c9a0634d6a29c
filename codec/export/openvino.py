"""Export to OpenVINO, the fastest runtime on CPUs; the quantizer is a separate graph, always float32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from codec.export.graphs import inference_codec, programs
from codec.export.onnx import to_int8, write_whole
from codec.export.progress import log
from codec.export.verification import optional
from codec.model.codec import Codec

PARTS = ("network", "quantizer", "decoder")


@torch.no_grad()
def write(
    codec: Codec, folder: Path, about: Mapping[str, str], clips: Sequence[Sequence[Tensor]] | None = None
) -> None:
    """Write `network.xml` (audio to latents), `quantizer.xml` (to codes) and `decoder.xml` (codes to audio).

    With `clips`, inputs of `network` that calibrate the ranges of activations, convolutions are int8.
    """
    openvino = optional("openvino", "openvino")
    write_whole(programs(inference_codec(codec), split=True), folder, about)
    if clips is not None:
        to_int8(folder / "network.onnx", clips)
        to_int8(folder / "decoder.onnx", [[codec.encode(clip[0])] for clip in clips])
    for part in PARTS:
        path = folder / f"{part}.onnx"
        log.info("writing %s.xml", part)
        graph, target = openvino.convert_model(path), folder / f"{part}.xml"
        try:
            openvino.save_model(graph, target, compress_to_fp16=False)
        except RuntimeError as error:  # raised by OpenVINO for a full disk, too
            raise OSError(f"{target}: {error}") from error
        path.unlink()


class Session:
    """Graphs of a folder, compiled for this CPU; with `bf16`, all but the quantizer compute in bfloat16."""

    def __init__(self, folder: Path, threads: int = 1, bf16: bool = False):
        openvino = optional("openvino", "openvino")
        core = openvino.Core()
        self.compiled = {}
        for part in PARTS:
            fast = bf16 and part != "quantizer"
            options = {
                "INFERENCE_NUM_THREADS": threads,
                "NUM_STREAMS": 1,
                "INFERENCE_PRECISION_HINT": "bf16" if fast else "f32",
            }
            self.compiled[part] = core.compile_model(str(folder / f"{part}.xml"), "CPU", options)

    def run(self, part: str, *tensors: Tensor) -> Tensor:
        """Run one graph; returns its only output."""
        arrays = [tensor.contiguous().numpy() for tensor in tensors]
        return torch.from_numpy(self.compiled[part](arrays)[0].copy())

    def encode(self, audio: Tensor, *condition: Tensor) -> Tensor:
        """Encode audio `[B, C, T]`, with a condition `[B]` if it is an input, to codes `[B, K, F]`."""
        return self.run("quantizer", self.run("network", audio, *condition))

    def decode(self, codes: Tensor) -> Tensor:
        """Decode codes `[B, k, F]` to audio `[B, C, F * hop_length]`."""
        return self.run("decoder", codes)
