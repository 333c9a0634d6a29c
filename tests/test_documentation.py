"""Documentation of the classes that a yaml can name: shapes of input and output, and the source."""

import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from codec.config import CONFIG_DIR, TARGET, locate

SHAPE = re.compile(r"\[(?:[A-Z]\w*'?|\d+|count)(?:, |\]| \*| /)")
SOURCE = re.compile(
    r"\b\d{4}\.\d{4,5}\b|\b[A-Z]\w+(?: et al\.| and [A-Z]\w+)? (?:19|20)\d\d\b|[Oo]riginal to this project"
)
METHODS = ("__call__", "forward", "encode", "decode", "gains", "generator", "discriminator")
# Options of a run, which take and return no tensor.
WITHOUT_TENSORS = {"Validation", "Search", "Optimization", "Cosine", "Exponential"}


def targets(node: Any) -> Iterator[str]:
    """Every `_target_` below a node of a config."""
    if isinstance(node, dict):
        if TARGET in node:
            yield node[TARGET]
        node = list(node.values())
    if isinstance(node, list):
        for value in node:
            yield from targets(value)


CONFIGS = [yaml.safe_load(path.read_text()) for path in CONFIG_DIR.rglob("*.yaml")]
NAMES = sorted({name for config in CONFIGS for name in targets(config) if name.startswith("codec.")})
CLASSES = [located for located in map(locate, NAMES) if inspect.isclass(located)]
EACH = pytest.mark.parametrize("part", CLASSES, ids=lambda part: part.__name__)


def described(part: type) -> str:
    """Docstring of a class and of its methods on tensors, inherited ones of this package included."""
    methods = [getattr(part, name, None) for name in METHODS]
    own = [m for m in methods if getattr(m, "__module__", "").startswith("codec.")]
    return "\n".join(inspect.getdoc(member) or "" for member in (part, *own))


def test_the_yamls_name_these_classes():
    assert {"SEANet", "Residual", "EMACodebook", "Objective", "AudioDataModule"} <= {
        c.__name__ for c in CLASSES
    }
    assert {c.__name__ for c in CLASSES} >= WITHOUT_TENSORS and len(CLASSES) > 45


@EACH
def test_a_class_is_described_in_one_line(part):
    first, _, rest = (part.__doc__ or "").partition("\n")
    assert first.strip() and first.rstrip().endswith((".", "]`.")), part
    assert not rest.strip() or rest.startswith("\n"), f"{part}: an empty line after the first"


@EACH
def test_a_class_has_the_shapes_of_its_input_and_output(part):
    if part.__name__ in WITHOUT_TENSORS:
        assert not set(METHODS) & {name for name, member in vars(part).items() if inspect.isfunction(member)}
        return
    text = described(part)
    count = len(SHAPE.findall(text)) + len(re.findall(r"\b[Ss]calars?\b", text))
    assert count >= 2, f"{part.__name__}: shapes of input and output, as `[B, C, T]`:\n{text}"


@EACH
def test_a_class_names_its_source(part):
    assert SOURCE.search(part.__doc__ or ""), (
        f"{part.__name__}: paper and equation, or 'Original to this project'"
    )


@pytest.mark.parametrize(
    ("text", "count"),
    [("`[B, C, T]` to `[B, D, F / 2]`", 2), ("`[N, D]` and codes `[N]`", 2), ("values [lowest, highest]", 0)],
)
def test_shapes_are_found(text, count):
    assert len(SHAPE.findall(text)) == count


@pytest.mark.parametrize(
    "text", ["(arXiv 1711.00937, eq. 3)", "Jégou et al. 2011", "Original to this project."]
)
def test_sources_are_found(text):
    assert SOURCE.search(text) and not SOURCE.search("as in EnCodec, 24000 samples")
