"""Formats of datasets: codes, and continuous latents with their statistics, as read from `tokens.json`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import numpy as np

from codec.tokens.files import META_FILE, VERSION, TokenError, TokenFormat

if TYPE_CHECKING:
    from codec.model.codec import Codec

MOST_DIMENSIONS = 2**16
DTYPES = {"float16": np.dtype("<f2"), "float32": np.dtype("<f4")}


@dataclass(frozen=True)
class LatentFormat(TokenFormat):
    """Format of continuous latents `[latent_dim, F]`, stored in the type `latent_dtype`."""

    kind: ClassVar = "codec-latents"
    column: ClassVar = "latents"
    loaded: ClassVar[type] = np.float32
    identity: ClassVar = ("layout", "codec_id", "latent_dim", "dtype")

    latent_dim: int = 0
    latent_dtype: str = "float32"

    def wrong_content(self) -> dict[str, bool]:
        """Flags of impossible values that describe the latents, by name."""
        dim = self.latent_dim
        return {
            "latent_dim": type(dim) is not int or not 1 <= dim <= MOST_DIMENSIONS,
            "dtype": self.latent_dtype not in DTYPES,
        }

    @property
    def rows(self) -> int:
        """Number of values per frame."""
        return self.latent_dim

    @property
    def dtype(self) -> np.dtype:
        """Type of stored values, little-endian."""
        return DTYPES[self.latent_dtype]

    def describe(self) -> dict[str, Any]:
        """Content of `tokens.json` that follows from the format."""
        absent = ("codebook_sizes", "num_quantizers", "latent_dtype")
        content = {name: value for name, value in super().describe().items() if name not in absent}
        return content | {"order": "[latent_dim, n_frames], row-major, little-endian"}

    def fault(self, coded: np.ndarray) -> str:
        """Fault of stored latents `[D, F]` in words; empty without one."""
        return "" if np.isfinite(coded).all() else "latents are not finite"

    def of_codec(self, codec: Codec) -> dict[str, Any]:
        """Number of dimensions of a codec's latents."""
        return {"latent_dim": codec.quantizer.latent_dim}


FORMATS = {form.kind: form for form in (TokenFormat, LatentFormat)}


def read_format(folder: Path) -> tuple[TokenFormat, dict[str, Any]]:
    """Read `tokens.json`; FileNotFoundError if it is missing, TokenError if it is damaged."""
    path = folder / META_FILE
    if not path.is_file():
        is_unfinished = (folder / ".encoding").is_dir()
        hint = (
            "its encoding is not finished: run codec-encode again"
            if is_unfinished
            else f"{META_FILE} is missing"
        )
        raise FileNotFoundError(f"{folder}: holds no token dataset, {hint}")
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict) or content.get("format") not in FORMATS:
            raise TokenError("not the description of a token dataset")
        if content.get("version") != VERSION:
            raise TokenError(f"version {content.get('version')!r}; this program reads version {VERSION}")
        return parse_format(content), content
    except (ValueError, RecursionError, LookupError, TypeError) as error:
        raise TokenError(f"{path}: damaged: {error}") from error


def parse_format(content: Mapping[str, Any]) -> TokenFormat:
    """Format from the content of `tokens.json`; TokenError or LookupError if it is invalid."""
    form = FORMATS[content["format"]]
    if form is LatentFormat:
        Statistics.parse(content["statistics"], content["latent_dim"])
        content = {**content, "codebook_sizes": [], "latent_dtype": content["dtype"]}
    values: dict[str, Any] = {field.name: content[field.name] for field in fields(form)}
    if not isinstance(values["codebook_sizes"], list):
        raise TokenError("codebook_sizes is not a list")
    values["codebook_sizes"] = tuple(values["codebook_sizes"])
    return form(**values)


class Statistics(NamedTuple):
    """Number of frames, and mean and sum of squared deviations of each dimension, float64 `[D]`."""

    count: int
    mean: np.ndarray
    squares: np.ndarray

    @classmethod
    def of(cls, latents: np.ndarray) -> Self:
        """Statistics of latents `[D, F]`."""
        values = latents.astype(np.float64)
        mean = values.mean(1)
        return cls(values.shape[1], mean, np.square(values - mean[:, None]).sum(1))

    @classmethod
    def merged(cls, parts: Iterable[Statistics]) -> Statistics:
        """Statistics of all frames together (Chan et al. 1979), in the order of the parts."""
        total = Statistics(0, np.zeros(1), np.zeros(1))
        for part in parts:
            count, shift = total.count + part.count, part.mean - total.mean
            squares = total.squares + part.squares + np.square(shift) * total.count * part.count / count
            total = Statistics(count, total.mean + shift * part.count / count, squares)
        return total

    def stored(self) -> list[Any]:
        """Exact values for JSON."""
        return [self.count, self.mean.tolist(), self.squares.tolist()]

    @classmethod
    def restored(cls, stored: Any) -> Self:
        """Inverse of `stored`."""
        count, mean, squares = stored
        return cls(count, np.array(mean), np.array(squares))

    def describe(self) -> dict[str, Any]:
        """Number of frames, mean and standard deviation of each dimension, for `tokens.json`."""
        deviation = np.sqrt(self.squares / self.count)
        return {"count": self.count, "mean": self.mean.tolist(), "std": deviation.tolist()}

    @staticmethod
    def parse(content: Any, latent_dim: int) -> None:
        """Raise TokenError unless this is a result of `describe` for `latent_dim` dimensions."""
        if type(content["count"]) is not int or content["count"] < 1:
            raise TokenError("statistics: count is no number of frames")
        for name in ("mean", "std"):
            numbers = content[name]
            if (
                not isinstance(numbers, list)
                or len(numbers) != latent_dim
                or not all(map(is_number, numbers))
            ):
                raise TokenError(f"statistics: {name} is not {latent_dim} numbers")


def is_number(value: Any) -> bool:
    """True for a finite number."""
    return type(value) in (int, float) and math.isfinite(value)
