"""Plain English in the package: headless clauses, names without a noun and British spellings."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

import codec
from codec.commands.parsers import PARSERS

PACKAGE = Path(codec.__file__).parent
ENTRIES = sorted(
    path.name for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()
)

# Clauses that stand for a thing without its name: "What the quantizer draws", "Whether it learns", "how many
# codes a frame uses". Questions are no such clauses.
HEADLESS = re.compile(
    r"^(?:What|Whether|How|Where|Who|Which)\b|\bwhat\b|\bhow (?:many|much|often|far|long)\b"
    r"|\b(?:of|for|by|says?|knows?) (?:how|whether|where|who)\b"
)
BRITISH = re.compile(
    r"\b\w*(?:normal|initial|optim|minim|maxim|standard|factor|quant|token|organ|recogn|general|special|summar"
    r"|categor|parametr|serial|synchron|visual|regular|real|util|character)"
    r"(?:ise[drs]?|ising|isations?)\b|\b(?:anal|paral)ys(?:e[ds]?|ing)\b"
    r"|\b(?:colour|behaviour|neighbour|favour|honour)\w*|\bcent(?:re[ds]?|ring)\b|\blicences?\b|\bcatalogues?\b"
    r"|\b(?:model|label|cancel|signal|travel)l(?:ed|ing)\b|\bgrey\b|\btowards\b",
    re.IGNORECASE,
)

# Participles, pronouns and adverbs without a noun: "kept" of which bytes, "theirs" of whose weights.
NAMELESS = re.compile(
    "again|along|asked|before|began|begun|beyond|done|everyone|everything|falls|following|found|given|gone"
    "|heard|held|here|kept|known|lacking|lacks|left|made|made_of|met|nothing|now|ours|placed|promised|said"
    "|same|seen|several|shown|taken|takes|theirs|whole|why"
)
LARGEST_SHARE = 0.002  # of all assigned names


ROOT = Path(__file__).parent.parent
HELPERS = sorted(path for path in Path(__file__).parent.glob("*.py") if not path.name.startswith("test_"))
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
PYTHON = sorted({*PACKAGE.rglob("*.py"), *SCRIPTS, *Path(__file__).parent.rglob("*.py")} - {Path(__file__)})
TEXTS = sorted(
    path
    for path in (*ROOT.glob("*.md"), *(ROOT / "configs").rglob("*"), *PACKAGE.rglob("*.md"))
    if path.suffix in (".md", ".yaml")
)
# Names in saved models and in the contract of codebooks, which stay, and options that tests misspell.
SPELLED = re.compile(r"initialised?|CANCELLING|analyses|(?:num_)?quantisers?")


def files(entry: str) -> list[Path]:
    path = PACKAGE / entry
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]


def docstrings(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def headless(text: str) -> list[str]:
    """Sentences with a headless clause, once per clause."""
    sentences = re.split(r"(?<=[.!?:;])\s+", text)
    return [one for one in sentences if not one.endswith("?") for _ in HEADLESS.findall(one)]


def assigned(tree: ast.AST) -> list[str]:
    """Names that are assigned, once per assignment, without `left` beside `right`: sides are nouns."""
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    sides: set[int] = set()
    for function in functions:
        stores = [n for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
        if any(node.id == "right" for node in stores):
            sides |= {id(node) for node in stores if node.id == "left"}
    nodes = [n for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    return [node.id for node in nodes if id(node) not in sides]


def prose(source: str) -> Iterator[str]:
    """Docstrings, messages and comments, without code in backticks and without one-word strings."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield re.sub(r"`[^`]*`", "", node.value)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield re.sub(r"`[^`]*`", "", token.string)


@pytest.mark.parametrize("path", [*SCRIPTS, *HELPERS], ids=lambda path: path.name)
def test_docstrings_of_scripts_and_helpers_name_things(path):
    clauses = [clause for text in docstrings(ast.parse(path.read_text())) for clause in headless(text)]
    assert not clauses, "name the thing: " + "\n".join(clauses)


def test_local_names_are_nouns():
    names = {path: assigned(ast.parse(path.read_text())) for path in PACKAGE.rglob("*.py")}
    nameless = [f"{path}: {name}" for path in names for name in names[path] if NAMELESS.fullmatch(name)]
    total = sum(map(len, names.values()))
    assert len(nameless) <= LARGEST_SHARE * total, "name the thing:\n" + "\n".join(sorted(nameless))


def test_names_without_a_noun_are_counted():
    source = "def f(x):\n    left, right = x\n    found = [kept for kept in x]\n\ndef g(x):\n    left = x"
    assert sorted(set(filter(NAMELESS.fullmatch, assigned(ast.parse(source))))) == ["found", "kept", "left"]


@pytest.mark.parametrize("command", PARSERS)
def test_help_texts_name_things(command):
    parser = PARSERS[command]()
    texts = [parser.description, parser.epilog, *(action.help for action in parser._actions)]
    assert not [clause for text in texts for clause in headless(text or "")]


@pytest.mark.parametrize("entry", ENTRIES)
def test_docstrings_messages_and_comments_name_things(entry):
    texts = [text for path in files(entry) for text in prose(path.read_text())]
    clauses = [clause for text in texts for clause in headless(text)]
    assert not clauses, "name the thing: " + "\n".join(clauses)


@pytest.mark.parametrize(
    "path",
    [*(path for path in TEXTS if path.suffix == ".md"), *sorted(PACKAGE.rglob("*.html"))],
    ids=lambda path: f"{path.parent.name}-{path.name}",
)
def test_headings_name_things(path):
    headings = re.findall(r"^#+ (.*)$|<h\d>(.*?)</h\d>", path.read_text(), re.MULTILINE)
    clauses = [clause for groups in headings for heading in groups for clause in headless(heading)]
    assert not clauses, "name the thing: " + "\n".join(clauses)


@pytest.mark.parametrize("entry", ENTRIES)
def test_spelling_is_american(entry):
    words = [
        f"{path.name}: {match.group()}"
        for path in files(entry)
        for text in prose(path.read_text())
        for match in BRITISH.finditer(text)
    ]
    assert not words, f"American spelling, please: {words}"


def names_in(tree: ast.AST) -> Iterator[str]:
    """Names of functions, classes, arguments and variables."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg


def british(text: str) -> list[str]:
    """British words of a text or of a name with underscores."""
    words = (match.group() for match in BRITISH.finditer(text.replace("_", " ")))
    return [word for word in words if not SPELLED.fullmatch(word)]


def test_names_are_american():
    names = {
        (path.name, name) for path in PYTHON for name in [path.stem, *names_in(ast.parse(path.read_text()))]
    }
    words = sorted(f"{path}: {name}" for path, name in names if british(name))
    assert not words, f"American spelling, please: {words}"


def test_spelling_of_scripts_tests_configs_and_texts_is_american():
    words = {
        f"{path.name}: {word}" for path in TEXTS for word in british(re.sub(r"`[^`]*`", "", path.read_text()))
    }
    words |= {f"{p.name}: {word}" for p in PYTHON for text in prose(p.read_text()) for word in british(text)}
    assert not words, f"American spelling, please: {sorted(words)}"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("What the quantizer draws.", 1),
        ("Whether it learns", 1),
        ("Returns the frames. How many codes a frame uses.", 1),
        ("Sum of what the branches decode", 1),
        ("Ignores how many\ncodes there are", 1),
        ("Number of codes per frame; the file in which they are.", 0),
        ("What is lost?", 0),
    ],
)
def test_headless_clauses_are_found(text, count):
    assert len(headless(text)) == count


def test_british_words_are_found():
    text = (
        "# l2-normalised, analysed, centred, neighbours; `initialise` is a method, realistic is not British"
    )
    words = [match.group() for part in prose(text) for match in BRITISH.finditer(part)]
    assert words == ["normalised", "analysed", "centred", "neighbours"]
