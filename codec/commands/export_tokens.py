"""`codec-export-tokens TOKENS --to hf -o FOLDER`: a token dataset for another library."""

from __future__ import annotations

from collections.abc import Sequence

from codec.commands.parsers import parse
from codec.config import ConfigError
from codec.tokens.dataset import TokenDataset
from codec.tokens.exports import EXPORTS

OF_LATENTS = ("hf", "webdataset", "litdata")  # formats of float arrays


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; ConfigError and DataError for errors of the user."""
    options = parse("export-tokens", argv)
    tokens = TokenDataset(options.tokens, options.num_quantizers)
    if not tokens.codebook_sizes and options.to not in OF_LATENTS:
        formats = ", ".join(OF_LATENTS)
        raise ConfigError(
            f"{options.tokens} holds continuous latents, and --to {options.to} takes codes. Take one of the "
            f"formats that hold latents: {formats}"
        )
    EXPORTS[options.to](tokens, options.output)
    print(f"{len(tokens)} utterances in {options.output}")
    return 0
