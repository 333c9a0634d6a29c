"""What the README says is so."""

import re
from pathlib import Path

import numpy as np
import torch
from composed import config, options

from codec.audio.writing import write_wav
from codec.config import CONFIG_DIR, build
from codec.model.saving import build_codec
from codec.tokens.encoding import encode_corpus
from codec.tokens.sources import Settings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_is_short():
    assert len(README.splitlines()) <= 150


def test_its_tree_is_the_tree():
    tree = README.partition("## The tree")[2]
    named = set(re.findall(r"([a-z0-9_]+\.py|[a-z]+/)", tree))
    files = {path.name for path in (ROOT / "codec").glob("*.py")} - {"__init__.py"}
    folders = {f"{path.name}/" for path in (ROOT / "codec").iterdir() if (path / "__init__.py").is_file()}
    assert files | folders <= named
    assert len(tree.strip().partition("\n\n")[0].splitlines()) <= 26
    others = {"codec/", "configs/", "scripts/", "tests/", "experiment/", "contracts/"}
    assert named <= files | folders | others


def test_every_choice_and_option_that_it_names_exists():
    start = README.partition("## Options that people change")[2].partition("## Which one is best")[0]
    for table in (start, (CONFIG_DIR / "README.md").read_text(encoding="utf-8")):
        for group, names in re.findall(r"`(\w+)=(\w+(?:`, `\w+)*)`", table):
            if (CONFIG_DIR / group).is_dir():
                assert set(names.split("`, `")) <= set(options(group)), group
        plain = [one for one in re.findall(r"`([\w.]+\.[\w.]+=[^`]+)`", table) if "data.root" not in one]
        assert len(plain) > 5
        config(*plain)


def test_its_python_runs(tmp_path, monkeypatch):
    build_codec(config("experiment=tiny")["model"]).save(tmp_path / "runs/tiny/model")
    monkeypatch.chdir(tmp_path)
    block = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert block
    names: dict = {}
    exec(block[1], names)
    assert names["codes"].dtype == torch.int64 and names["codes"].shape[:2] == (1, 8)
    assert names["audio"].shape == (1, 1, 16000)
    (tmp_path / "wavs").mkdir()
    noise = np.random.default_rng(0).standard_normal((1, 40000)).astype(np.float32)
    write_wav(tmp_path / "wavs/a.wav", noise / 8, 16000)
    encode_corpus(names["model"], [tmp_path / "wavs"], tmp_path / "tokens", Settings("npy"))
    exec(re.findall(r"```python\n(.*?)```", README, re.DOTALL)[1], names)
    assert names["steps"].shape == (8, 64 + 7) and names["audio"].shape == (1, 100 * 128)
    assert names["codes"].shape == (1, 8, 3) and names["heard"].shape == (1, 1, 3 * 128)


def test_the_table_of_quantizers_is_what_their_yamls_say():
    table = (CONFIG_DIR / "quantizer/README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \| (.*?) \|$", table.partition("## ")[0], re.MULTILINE)
    assert [name for name, *_ in rows] == options("quantizer")
    for name, what, codes, bits in rows:
        lines = (CONFIG_DIR / f"quantizer/{name}.yaml").read_text(encoding="utf-8").splitlines()
        assert lines[0] == f"# {what}"
        quantizer = build(config(f"quantizer={name}")["quantizer"])
        if quantizer.codebook_sizes:
            per = f" per {quantizer.stride} frames" if quantizer.stride > 1 else ""
            assert codes == f"{quantizer.num_quantizers}{per}"
            assert bits == f"{quantizer.bits_per_frame() / quantizer.stride:.4g}"


def test_every_option_in_the_quantizers_other_names_exists():
    text = (CONFIG_DIR / "quantizer/README.md").read_text(encoding="utf-8")
    parts = text.partition("They are compositions")[2].partition("## Coming")[0]
    modules = {
        path.stem: path.read_text(encoding="utf-8")
        for room in ("quantizers", "codebooks")
        for path in (ROOT / "codec" / room).glob("[a-z]*.py")
    }
    for module, name in re.findall(r"`(\w+)\.(\w+)`", parts):
        assert re.search(rf"^(class|def) {name}\b", modules[module], re.MULTILINE), name
    for name in re.findall(r"`quantizer=(\w+)`", text):
        assert name in options("quantizer")
