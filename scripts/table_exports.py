"""Export every architecture and every quantizer to every format, verify them, and write the table of it.

    python scripts/table_exports.py           # prints the rows; needs ".[export,openvino]"
    python scripts/table_exports.py --write   # and puts them into codec/export/README.md

The codecs are narrow and have random weights: whether a graph can be made and does the same, is all the same.
Architectures are exported with rvq, DAC's with factorized_rvq; quantizers in the tiny codec, and for
transformers in EnCodec's or DAC's, whichever takes them.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from codec.config import CONFIG_DIR, ConfigError
from codec.export.formats import FORMATS, Options
from codec.export.streaming_graphs import step_names
from codec.export.verification import clip
from codec.model.codec import Codec
from codec.model.saving import build_codec

PAGE = Path(__file__).parent.parent / "codec/export/README.md"
NO = "no"
COLUMNS = ["onnx", "onnx-steps", "torch", "openvino", "hf"]
PARTNERS = {"dac": "factorized_rvq", "wavtokenizer": "vq_4096"}  # quantizers that go with an architecture
MOST = {"num_groups": 4, "codebook_size": 32, "quantizer_dim": 8, "num_quantizers": 3, "codebook_bits": 6}
NARROW = {"encoder_channels": 4, "decoder_channels": 4, "latent_dim": 64}


def options(group: str) -> list[list[str]]:
    """Names of the yamls of a config group; architectures of one name and several sizes are one graph."""
    names = sorted(path.stem for path in (CONFIG_DIR / group).glob("*.yaml"))
    if group != "autoencoder":
        return [[name] for name in names]

    def graph(name: str) -> tuple[str, bool]:
        node = composed_with(f"autoencoder={name}")["autoencoder"]
        node = node.get("encoder", node)  # of two halves
        return name.partition("_")[0], node.get("layers", node)["causal"]

    return [list(group) for _, group in itertools.groupby(sorted(names, key=graph), graph)]


def composed_with(*overrides: str) -> Any:
    """The plain training config with overrides."""
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        composed = compose("train", ["name=table", "data.root=none", *overrides])
    return OmegaConf.to_container(composed, resolve=True)


def narrow(node: Any) -> None:
    """Lower a config's sizes to `MOST`."""
    for key, value in node.items():
        if key in MOST:
            node[key] = min(value, MOST[key])
        elif key == "depths" and value:
            node[key] = [depth for depth in value if depth <= MOST["num_quantizers"]]
        elif isinstance(value, dict):
            narrow(value)


def made_of(autoencoder: str, quantizer: str) -> Codec:
    """A narrow codec of two options."""
    torch.manual_seed(0)
    choices = [f"autoencoder={autoencoder}", f"quantizer={quantizer}"]
    network = composed_with(choices[0])["autoencoder"]
    sizes = NARROW | {"channels": [16] * len(network.get("channels", []))}
    node = composed_with(*choices, *(f"autoencoder.{k}={v}" for k, v in sizes.items() if k in network))
    narrow(node["model"])
    return started(build_codec(node["model"]).eval())


def started(codec: Codec) -> Codec:
    """The codec, its codebooks begun with its latents of speech."""
    if wanted := codec.quantizer.pool_size():
        with torch.no_grad():
            latents = codec.latents(clip(codec, 4, 40 * codec.hop_length)).transpose(1, 2).flatten(0, 1)
            pool = latents.repeat(-(-wanted // len(latents)), 1)
            codec.quantizer.initialise(pool + 0.1 * latents.std(0) * torch.randn_like(pool))
    return codec


def verdict(codec: Codec, form: str, streaming: bool = False) -> str:
    """`yes` for an export with the same results, otherwise the reason."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            if streaming:
                step_names(codec)
            for what, found in FORMATS[form].write(codec, Path(folder), Options(streaming=streaming)).items():
                found.require(f"{form}, {what},")
    except ConfigError as error:
        logging.warning("%s: %s", form, error)
        return NO
    return "yes"


def row(group: str, names: Sequence[str]) -> str:
    """A line of the table, of the first of the names."""
    name = names[0]
    partner = PARTNERS.get(name.partition("_")[0], "rvq")
    codec = made_of(name, partner) if group == "autoencoder" else made_of("tiny", name)
    cells = {form: verdict(codec, form) for form in ("torch", "openvino")}
    cells["onnx-steps"] = verdict(codec, "onnx", streaming=True)  # both
    cells["onnx"] = "yes" if cells["onnx-steps"] == "yes" else verdict(codec, "onnx")
    others = [codec] if group == "autoencoder" else [made_of(host, name) for host in ("encodec", "dac_24khz")]
    shapes = [verdict(other, "hf") for other in others]
    cells["hf"] = "yes" if "yes" in shapes else NO
    listed = ", ".join(f"`{name}`" for name in names)
    return f"| {group} | {listed} | {' | '.join(cells[column] for column in COLUMNS)} |"


def main() -> None:
    """Print all rows, write them if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--groups", nargs="+", default=["autoencoder", "quantizer"])
    parser.add_argument("--only", nargs="+", metavar="OPTION", help="print the rows of these alone")
    asked = parser.parse_args()
    if asked.only and asked.write:
        parser.error("--write needs all rows")
    rows = [f"| group | option | {' | '.join(COLUMNS)} |", f"|{'---|' * (2 + len(COLUMNS))}"]
    for group in asked.groups:
        for names in options(group):
            if asked.only and not set(asked.only) & set(names):
                continue
            rows.append(row(group, names))
            print(rows[-1], flush=True)
    if asked.write:
        page = PAGE.read_text(encoding="utf-8")
        table = re.compile(r"^\| group \|.*?(?=\n\n|\Z)", re.DOTALL | re.MULTILINE)
        PAGE.write_text(table.sub(lambda _: "\n".join(rows), page), encoding="utf-8")


if __name__ == "__main__":
    main()
