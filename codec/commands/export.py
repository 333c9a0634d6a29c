"""`codec-export MODEL --to FORMAT -o DIR`: export a codec; the result is kept only if it is equivalent."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from codec.commands.parsers import parse
from codec.config import ConfigError
from codec.export.formats import FORMATS, Options
from codec.export.model_card import model_card
from codec.export.progress import log, progress
from codec.export.streaming_graphs import step_names
from codec.export.verification import EXACT, Limits, optional
from codec.huggingface import convert as huggingface
from codec.model.codec import Codec
from codec.system.files import folder_whole, require_free

# For trained codecs, bf16 keeps 86 to 92 % of the codes, an SNR of 45 dB and the same mel distance; int8
# keeps 64 to 71 %, 30 dB and up to 10 % more distance. Deep stages code small residuals: their codes change
# first and matter least. Values far below these are faults, not rounding.
REDUCED = Limits(agreement=0.5, snr=20.0, rise=0.2)


def main(argv: Sequence[str]) -> int:
    """Run the command; exit status 0: exported and verified, 2: nothing was kept."""
    arguments = parse("export", argv)
    options = Options(arguments.streaming, arguments.frames_per_step, arguments.int8, arguments.bf16)
    check_options(arguments.to, options)
    check_others(arguments)
    with progress():
        log.info("loading %s", arguments.model)
        codec = huggingface.load_any(arguments.model, arguments.zero_padding)
        if arguments.condition:
            codec.set_condition(arguments.condition)
        card = partial(model_card, codec, arguments.model, license_id=arguments.license)
        lines = export(codec, arguments.to, arguments.output, options, card)
    print("\n".join(lines))
    print(f"{arguments.to}: {arguments.output}")
    if arguments.push:
        print(push(arguments.output, arguments.push, arguments.dry_run))
    return 0


def check_options(form: str, options: Options) -> None:
    """Raise ConfigError for options that a format does not support, invalid values and missing packages."""
    for name in ("streaming", "int8", "bf16"):
        if getattr(options, name) and name not in FORMATS[form].options:
            formats = " and ".join(f"--to {other}" for other in FORMATS if name in FORMATS[other].options)
            raise ConfigError(f"--{name} is for {formats}: --to {form} has none")
    if options.frames_per_step < 1:
        raise ConfigError(f"--frames-per-step: expected 1 or more, got {options.frames_per_step}")
    if options.frames_per_step > 1 and not options.streaming:
        raise ConfigError("--frames-per-step is for --streaming")
    for package in FORMATS[form].packages:
        optional(package, FORMATS[form].extra)


def check_codec(codec: Codec, form: str, options: Options) -> None:
    """Raise ConfigError for a codec that a format cannot represent."""
    if (options.int8 or options.bf16) and not codec.quantizer.codebook_sizes:
        raise ConfigError("--int8 and --bf16 are for codes: continuous latents are exported in float32")
    if form == "hf":
        codec.quantizer.require_codes("export to transformers")
        huggingface.shape_of(codec)
    if options.streaming:
        step_names(codec)


def check_others(asked: argparse.Namespace) -> None:
    """Raise ConfigError for conflicting options, an existing folder or a missing package."""
    if asked.zero_padding and not huggingface.is_huggingface(asked.model):
        raise ConfigError(f"--zero-padding is for an EnCodec of transformers: {asked.model} is none")
    if asked.dry_run and not asked.push:
        raise ConfigError("--dry-run is for --push REPO")
    if asked.push and not asked.dry_run:
        optional("huggingface_hub")
    require_free(asked.output)


def export(codec: Codec, form: str, folder: Path, options: Options, card: Callable[..., str]) -> list[str]:
    """Export a codec to the format `form` in a new folder; returns the comparisons as lines of text.

    The folder appears only after all checks. `card` writes its README.md from the comparisons. ConfigError if
    a comparison exceeds the limits.
    """
    check_codec(codec, form, options)
    limits = REDUCED if options.int8 or options.bf16 else EXACT
    with folder_whole(folder) as staging:
        comparisons = FORMATS[form].write(codec, staging, options)
        lines = [f"{case}: {comparison}" for case, comparison in comparisons.items()]
        for case, comparison in comparisons.items():
            comparison.require(f"{form}, {case},", limits)
        (staging / "README.md").write_text(card(form=form, options=options, checks=lines), encoding="utf-8")
    return lines


def push(folder: Path, repository: str, dry_run: bool) -> str:
    """Upload a folder to the Hugging Face hub, with the account of `hf auth login`; returns a report."""
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    megabytes = sum((folder / name).stat().st_size for name in files) / 1e6
    upload = f"{len(files)} files, {megabytes:.1f} MB, to {repository}: {', '.join(files)}"
    if dry_run:
        return f"would upload {upload}"
    hub = optional("huggingface_hub")
    try:
        api = hub.HfApi()
        api.create_repo(repository, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=str(folder))
    except Exception as error:  # from the hub, its HTTP library or the network
        raise ConfigError(f"--push {repository}: {error}; the folder {folder} is complete") from error
    return f"uploaded {upload}"
