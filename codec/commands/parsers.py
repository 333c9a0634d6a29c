"""Parser of each command, without slow imports."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from codec.commands import descriptions as about
from codec.commands.arguments import (
    BEAM,
    DEVICE,
    MODEL,
    STDIN,
    STDOUT,
    add_condition,
    add_dataset,
    add_trust,
    bitstream_parser,
    model_parser,
    new_parser,
)
from codec.commands.paths import local_path, recordings


def parse(command: str, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the arguments of `codec-COMMAND`; exits on `--help`, `--version` and invalid arguments."""
    return PARSERS[command]().parse_intermixed_args(argv)


def plan() -> argparse.ArgumentParser:
    """Parser of `codec-plan`."""
    parser = new_parser("plan", about.PLAN)
    parser.add_argument("overrides", nargs="*", help="Hydra overrides, as for codec-train")
    parser.add_argument("--config-dir", "-cd", help="folder of your own options, as for codec-train")
    parser.add_argument("--json", action="store_true", help="print the forecast as JSON")
    add_trust(parser)
    return parser


def doctor() -> argparse.ArgumentParser:
    """Parser of `codec-doctor`."""
    parser = new_parser("doctor", *about.DOCTOR)
    text = "searched with their sub-folders and shards; or .tar files, lists (.txt, .csv, .jsonl), addresses"
    parser.add_argument("folders", nargs="+", help=text)
    parser.add_argument("--no-content", action="store_true", help="read headers only: fast, finds less")
    parser.add_argument("--json", action="store_true", help="print all files and findings as JSON")
    return parser


def evaluate() -> argparse.ArgumentParser:
    """Parser of `codec-evaluate`."""
    parser = new_parser("evaluate", *about.EVALUATE)
    add = parser.add_argument
    add("what", nargs="+", help="run folders, saved codecs, checkpoints, hf:FOLDER (EnCodec, DAC or Mimi of "
        "transformers); then data.root=FOLDER, or just FOLDER, of recordings")  # fmt: skip
    add_trust(parser)
    add_condition(parser)
    add("-o", "--output", type=local_path, help="output folder; default: MODEL/evaluation-FOLDER")
    add("--metrics", default="", help="beside SI-SDR, mel, STFT and waveform distance: speech, music, all, "
        "or names as stoi,pesq_wb,visqol_speech,dnsmos_p808; they are the extra `metrics`")  # fmt: skip
    add("--metric", action="append", default=[], metavar="NAME=MODULE:ATTRIBUTE[,PATH]",
        help="your Metric, or function of estimate, reference (float32 [T]), rate and paths; or wer=FOLDER, "
        "speaker_similarity=FOLDER of a model of transformers")  # fmt: skip
    add("--metric-timeout", type=float, default=300.0, help="seconds for a score; default: %(default)s")
    add("--baselines", default="", help="classical codecs at kbit/s, as opus_6,opus_12,mp3_16; original: the "
        "audio itself; they are the extra `baselines`")  # fmt: skip
    add("--num-quantizers", default="", help="depths to decode, as 1,2,8 or all; default: at most 8, evenly")
    add("--packet-loss", default="", metavar="PERCENT", help="share of lost frames, as 1,5,10,20")
    add("--token-model", type=float, metavar="MINUTES",
        help="train a tiny language model of each model's codes: bit/s under context, by stage")  # fmt: skip
    add("--beam", type=int, default=1, help=BEAM)
    add("--bd-rate-against", help="reference curve of BD-rates; default: opus, or the first model")
    add("--sample-rate", type=int, help="sample rate of the comparison, Hz; default: the first model's")
    add("--held-out", type=float, metavar="SHARE",
        help="only files that training on this folder holds out: its data.validation.fraction")  # fmt: skip
    add("--max-files", type=int, default=100, help="default: %(default)s")
    add("--max-seconds", type=float, default=20.0, help="of each file; default: %(default)s")
    add("--workers", type=int, default=1, help="files at a time, each with a process for metrics; default: 1")
    add("--fresh", action="store_true", help="ignore the results of an earlier evaluation in the folder")
    add("--device", help=DEVICE)
    add("--clips", type=int, default=3, help="files to listen to on the page; default: %(default)s")
    add("--listening", choices=("abx", "mushra"), help="a page with a blind listening test of these clips; "
        "its results: codec-report CSV ...")  # fmt: skip
    return parser


def report() -> argparse.ArgumentParser:
    """Parser of `codec-report`."""
    parser = new_parser("report", *about.REPORT)
    add = parser.add_argument
    add("folders", type=local_path, nargs="+", help="runs, or folders of runs; or CSVs of listeners")
    add("-o", "--output", type=local_path, help="output folder; default: FOLDER/report, of CSVs none")
    add("--clips", type=int, default=3, help="files to listen to; default: %(default)s")
    add("--seconds", type=float, default=5.0, help="of each clip; default: %(default)s")
    add("--evaluation", default="evaluation", help="folder in each run, as codec-evaluate writes; "
        "default: %(default)s")  # fmt: skip
    return parser


def export() -> argparse.ArgumentParser:
    """Parser of `codec-export`."""
    parser = new_parser("export", about.EXPORT)
    add = parser.add_argument
    add("model", type=local_path, help=f"{MODEL}, or transformers directory")
    add_trust(parser)
    add("--to", choices=("onnx", "torch", "openvino", "hf", "codec"), required=True,
        help="hf: transformers; codec: ours, of hf")  # fmt: skip
    add("-o", "--output", type=local_path, required=True, help="folder to make")
    add("--streaming", action="store_true", help="add the step graphs of a causal codec, or decoder")
    add("--frames-per-step", type=int, default=1, metavar="N", help="default: %(default)s")
    add("--int8", action="store_true", help="int8 weights: smaller and faster, with some other codes")
    add("--bf16", action="store_true", help="verify OpenVINO's graphs in bfloat16")
    add("--license", help="for the model card, e.g. mit")
    add("--push", metavar="REPO", help="upload the folder to this repository of the Hugging Face hub")
    add("--dry-run", action="store_true", help="with --push: list the files instead of uploading them")
    add_condition(parser)
    text = "pad zeros in an EnCodec or WavTokenizer with reflection padding; codes differ at the edges"
    add("--zero-padding", action="store_true", help=text)
    return parser


def stream() -> argparse.ArgumentParser:
    """Parser of `codec-stream`."""
    parser = new_parser("stream", "Stream through a codec, from microphone or file to speakers or file.")
    add_condition(parser)
    add = parser.add_argument
    add("model", type=local_path, help=MODEL)
    add_trust(parser)
    add("input", type=local_path, nargs="?", help=f"audio file, {STDIN}; default: the microphone")
    add("-o", "--output", type=local_path, help=f"wav file, {STDOUT}; default: the speakers")
    add("--force", action="store_true", help="overwrite the output")
    add("--frames", type=int, default=1, help="frames per push; default: %(default)s")
    add("--num-quantizers", type=int, help="first stages only")
    add("--threads", type=int, default=1, help="CPU threads; default: %(default)s")
    return parser


def encode() -> argparse.ArgumentParser:
    """Parser of `codec-encode`."""
    parser = model_parser("encode", about.ENCODE)
    add_condition(parser)
    add = parser.add_argument
    add("inputs", type=recordings, nargs="+",
        help=f"a folder, searched with its sub-folders, a list, or audio files; {STDIN}")  # fmt: skip
    add("-o", "--output", type=local_path, required=True,
        help=f"folder of the token dataset; of one recording {STDOUT}")  # fmt: skip
    add("--num-quantizers", type=int, help="stages to keep; default: all")
    add("--beam", type=int, default=1, help=BEAM)
    text = "of the latents of a codec without codes; default: float32"
    add("--dtype", choices=("float16", "float32"), help=text)
    text = "audio in memory at a time; longer files are encoded in blocks; default: %(default)s"
    add("--batch-seconds", type=float, default=30.0, help=text)
    text = "mono from files of more channels: the mean, or one channel; default: %(default)s"
    add("--downmix", choices=("mid", "left", "right"), default="mid", help=text)
    add("--compile", action="store_true", help=about.COMPILE)
    add_dataset(parser)
    add("--engine", choices=("local", "ray"), default="local", help="ray: one job per CPU or GPU of Ray")
    return parser


def features() -> argparse.ArgumentParser:
    """Parser of `codec-features`."""
    parser = new_parser("features", about.FEATURES)
    add = parser.add_argument
    add("teacher", type=local_path, help="folder of a speech model of transformers")
    text = "a folder, searched with its sub-folders, a list, or audio files"
    add("inputs", type=recordings, nargs="+", help=text)
    add("-o", "--output", type=local_path, required=True, help="folder of the features")
    add("--layer", default="average", help="hidden state, from 0; default: the average of all")
    add("--dtype", choices=("float16", "float32"), default="float16", help="default: %(default)s")
    add("--device", help=DEVICE)
    add_dataset(parser)
    return parser


def decode() -> argparse.ArgumentParser:
    """Parser of `codec-decode`."""
    parser = model_parser("decode", about.DECODE)
    add = parser.add_argument
    add("tokens", type=local_path, help=f"folder of codec-encode; or a .codec or .npy file, {STDIN}")
    add("-o", "--output", type=local_path, required=True, help=f"folder for the wavs; or a wav, {STDOUT}")
    add("--num-quantizers", type=int, help="first stages to decode; default: all")
    add("--any-codec", action="store_true", help="accept tokens of another codec")
    return parser


def export_tokens() -> argparse.ArgumentParser:
    """Parser of `codec-export-tokens`."""
    parser = new_parser("export-tokens", "Convert a token dataset for another library.")
    add = parser.add_argument
    add("tokens", type=local_path, help="token dataset of codec-encode")
    formats = ("hf", "lhotse", "codec-bpe", "megatron", "webdataset", "litdata")
    add(
        "--to",
        choices=formats,
        required=True,
        help="hf: Hugging Face datasets; latents: hf, webdataset, litdata",
    )
    add("-o", "--output", type=local_path, required=True, help="a new folder")
    add("--num-quantizers", type=int, help="first stages to export; default: all")
    return parser


def compress() -> argparse.ArgumentParser:
    """Parser of `codec-compress`."""
    parser = bitstream_parser("compress", about.COMPRESS, f"the file to write, e.g. out.codec, {STDOUT}")
    add_condition(parser)
    add = parser.add_argument
    add("recording", type=local_path, help=f"audio file, {STDIN}")
    add("--num-quantizers", type=int, help="stages to keep; default: all")
    add("--beam", type=int, default=1, help=BEAM)
    add("--chunk-seconds", type=float, default=10.0,
        help="audio lost by a damaged byte; short chunks take more bytes; default: %(default)s")  # fmt: skip
    return parser


def decompress() -> argparse.ArgumentParser:
    """Parser of `codec-decompress`."""
    parser = bitstream_parser("decompress", about.DECOMPRESS, f"the wav to write, {STDOUT}")
    add = parser.add_argument
    add("compressed", type=local_path, help=f".codec file, {STDIN}")
    add("--num-quantizers", type=int, help="first stages to use; default: all of the file's")
    add("--salvage", action="store_true", help="decode damaged chunks as silence")
    return parser


def truncate() -> argparse.ArgumentParser:
    """Parser of `codec-truncate`."""
    parser = new_parser("truncate", about.TRUNCATE)
    add = parser.add_argument
    add("compressed", type=local_path, help=f".codec file, {STDIN}")
    add("-o", "--output", type=local_path, required=True, help=f"the file to write, {STDOUT}")
    add("--num-quantizers", type=int, required=True, help="first stages to keep")
    add("--force", action="store_true", help="replace an output that exists")
    return parser


def fit_entropy() -> argparse.ArgumentParser:
    """Parser of `codec-fit-entropy`."""
    parser = bitstream_parser("fit-entropy", about.FIT)
    add_condition(parser)
    add = parser.add_argument
    add("folder", type=recordings, help="recordings, or tokens of codec-encode, like those to be compressed")
    add("-o", "--output", type=local_path, help=f"default: {about.TABLES_FILE} in the model's folder")
    add("--max-hours", type=float, default=5.0, help="most audio used; default: %(default)s")
    add("--held-out", type=float, metavar="SHARE", help="leave out those of codec-evaluate --held-out SHARE")
    return parser


PARSERS = {
    function.__name__.replace("_", "-"): function
    for function in (
        *(plan, doctor, evaluate, report, export, stream, encode, decode, export_tokens, features),
        *(compress, decompress, truncate, fit_entropy),
    )
}
