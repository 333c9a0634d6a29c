"""What codec-export writes gives the codec's codes and audio, in the software that it is for."""

import contextlib
import math
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from composed import NO_CODES, causality, config, distinct, options, shrink, small_autoencoder
from table_exports import started
from torch import nn
from torch.nn.utils import parametrize

from codec.commands import export
from codec.commands.export import main, push
from codec.config import ConfigError
from codec.export import graphs, verification
from codec.export import onnx as onnx_export
from codec.export import streaming_graphs as step_graphs
from codec.export.comparison import lengths
from codec.export.formats import Options, export_onnx
from codec.export.verification import Comparison, clip, compare
from codec.huggingface.convert import shape_of
from codec.layers.conv import ConvTranspose1d
from codec.layers.recurrent import LSTM
from codec.metrics.signal import mel_distance
from codec.model.codec import Codec
from codec.model.saving import build_codec, load
from codec.system.files import FileError

NARROW = {"encoder_channels": 4, "decoder_channels": 4, "latent_dim": 16, "dim": 16, "num_groups": 4}
NARROW |= {"codebook_size": 32, "quantizer_dim": 8, "num_quantizers": 3, "codebook_bits": 6, "channels": 16}
NARROW |= {"num_layers": 2, "num_heads": 2, "window": 5}
AUTOENCODERS = [[f"autoencoder={name}"] for name in options("autoencoder")] + [
    ["autoencoder=tiny", "autoencoder.layers.causal=false", "autoencoder.strides=[3,2]", "channels=2"],
    ["autoencoder=encodec", "autoencoder.layers.causal=false"],
    [
        *("autoencoder=vocos", "autoencoder.causal=true", "autoencoder.lookahead=1"),
        *("autoencoder.strides=[3]", "channels=2"),
    ],
]


def model(*overrides: str) -> Codec:
    """A narrow codec with started codebooks."""
    torch.manual_seed(0)
    node = config(*overrides)["model"]
    shrink(node, NARROW)
    return started(build_codec(node).eval())


@pytest.mark.parametrize("overrides", AUTOENCODERS, ids=lambda o: ",".join(o))
@torch.no_grad()
def test_the_rewritten_network_is_the_same_function(overrides):
    codec = model(*overrides, "quantizer=rvq")
    before = {name: value.clone() for name, value in codec.state_dict().items()}
    plain = graphs.inference_codec(codec)
    assert not any(isinstance(part, ConvTranspose1d | LSTM | nn.LSTM) for part in plain.modules())
    assert not any(parametrize.is_parametrized(part) for part in plain.modules())
    found = compare(codec, graphs.Encoder(plain), graphs.Decoder(plain), lengths(codec))
    assert found.max_error < 1e-5 and found.agreement > 0.98 and found.snr > 80
    assert all(torch.equal(value, before[name]) for name, value in codec.state_dict().items())


@pytest.mark.parametrize("name", ["rvq", "multiscale_rvq", "split_rvq"])
def test_torch_programs_are_the_codec_at_every_batch_and_length(name):
    codec = model("autoencoder=tiny", f"quantizer={name}")
    found = graphs.programs(graphs.inference_codec(codec))
    found = compare(codec, found["encoder"].module(), found["decoder"].module(), lengths(codec))
    assert found.max_error < 1e-5 and found.agreement > 0.98


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("name", ["tiny", "encodec", "vocos", "mimi"])
def test_steps_are_the_codec_on_the_whole_signal(name, frames):
    codec = model(f"autoencoder={name}", causality(name, True), "quantizer=rvq")
    steps = step_graphs.step_programs(codec, frames)
    encode, decode = (steps[side] for side in ("encoder_step", "decoder_step"))
    audio = clip(codec, 2, 6 * frames * codec.hop_length)
    codes = codec.encode(audio)
    made = step_graphs.run_steps(encode.program.module(), encode.initial, audio, frames * codec.hop_length)
    assert torch.equal(made, codes)
    decoded = step_graphs.run_steps(decode.program.module(), decode.initial, codes, frames)
    torch.testing.assert_close(decoded, codec.decode(codes), rtol=0, atol=1e-5)


def saved(tmp_path, *overrides: str) -> str:
    codec = model(*(overrides or ("autoencoder=tiny", "quantizer=rvq")))
    codec.save(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.mark.filterwarnings("ignore")  # of torch about its own format, when a card's lines are run
def test_exported_programs_load_in_a_file(tmp_path, capsys):
    out = tmp_path / "out"
    assert main([saved(tmp_path), "--to", "torch", "--streaming", "-o", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {
        *("encoder.pt2", "decoder.pt2", "encoder_step.pt2", "decoder_step.pt2", "README.md")
    }
    assert "100.00% of the codes or latents agree" in capsys.readouterr().out
    card = (out / "README.md").read_text()
    assert card.startswith("---\ntags:") and "100.00%" in card
    assert "0.03 M, codebooks included: encoder 0.012, decoder 0.015, quantizer 0.002" in card
    assert run_snippet(out)["codes"].shape == (1, 3, 188)


def run_snippet(folder) -> dict:
    """What the Python of a model card leaves behind when it runs in its folder."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    made: dict = {}
    with contextlib.chdir(folder):
        exec(code, made)
    assert made["audio"].shape[-1] >= 15_000
    return made


def test_nothing_is_kept_of_a_copy_that_differs(tmp_path, monkeypatch):
    class Wrong(graphs.Decoder):
        def forward(self, codes):
            return super().forward(codes) + 1e-3

    source = saved(tmp_path)
    monkeypatch.setattr(graphs, "Decoder", Wrong)
    with pytest.raises(ConfigError, match=r"torch, whole signals, is not the codec.*nothing was kept.*0.001"):
        main([source, "--to", "torch", "-o", str(tmp_path / "out")])
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


@pytest.mark.parametrize("form", ["torch", "codec"])
def test_a_disk_without_room_is_told_and_leaves_nothing(tmp_path, form):
    resource = pytest.importorskip(
        "resource", reason="needs another operating system: one with limits of POSIX"
    )
    source = saved(tmp_path)
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, most))
    try:
        with pytest.raises(OSError, match=rf"File too large.*{tmp_path}/out|{tmp_path}/out.*File too large"):
            main([source, "--to", form, "-o", str(tmp_path / "out")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


def test_codes_that_differ_or_are_not_finite_are_refused():
    codec = model("autoencoder=tiny", "quantizer=rvq")
    shapes = [(1, codec.hop_length * 20)]
    other = compare(codec, lambda audio: (codec.encode(audio) + 1) % 32, codec.decode, shapes)
    assert other.agreement < 0.9
    with pytest.raises(ConfigError, match="not the codec"):
        other.require("it")
    nan = compare(codec, codec.encode, lambda codes: codec.decode(codes) * float("nan"), shapes)
    with pytest.raises(ConfigError, match="within inf"):
        nan.require("it")
    with pytest.raises(ConfigError, match="codes or latents are"):
        compare(codec, lambda audio: codec.encode(audio)[:, :1], codec.decode, shapes)
    Comparison(1e-5, 1.0, 100.0, 1).require("it")


@torch.no_grad()
def test_what_fewer_bits_may_cost_is_limited_by_what_is_heard(codec):
    quiet = [(1, 40 * codec.hop_length)]

    def noisy(codes: torch.Tensor) -> torch.Tensor:
        audio = codec.decode(codes)
        return audio + 0.3 * audio.square().mean().sqrt() * torch.randn(
            audio.shape, generator=torch.Generator().manual_seed(0)
        )

    exact = compare(codec, codec.encode, codec.decode, quiet)
    assert exact.rise == 0 and "mel distance to the clips +0.0%" in str(exact)
    exact.require("it", export.REDUCED)
    worse = compare(codec, codec.encode, noisy, quiet)
    audio, heard = clip(codec, *quiet[0]), noisy(codec.encode(clip(codec, *quiet[0])))
    before = mel_distance(codec.decode(codec.encode(audio)), audio, codec.sample_rate)
    assert worse.rise == pytest.approx(
        float(mel_distance(heard, audio, codec.sample_rate) / before) - 1, rel=1e-4
    )
    reference = codec.decode(codec.encode(audio))
    ratio = float(reference.square().sum() / (heard - reference).square().sum())
    assert worse.snr == pytest.approx(10 * math.log10(ratio), abs=0.01) and worse.agreement == 1
    with pytest.raises(ConfigError, match=r"the limits are SNR \d+ dB"):
        worse.require("it", export.REDUCED)
    with pytest.raises(ConfigError, match=r"the limits are 50% of the codes$"):
        exact._replace(agreement=0.49).require("it", export.REDUCED)
    with pytest.raises(ConfigError, match=r"the limits are mel distance \+\d+%$"):
        exact._replace(rise=float("inf")).require("it", export.REDUCED)


@pytest.mark.parametrize(
    ("overrides", "options", "message"),
    [
        (
            ["autoencoder.layers.causal=false"],
            ["--to", "torch", "--streaming"],
            "not causal.*without --streaming",
        ),
    ],
)
def test_what_cannot_be_exported_is_told(overrides, options, message, tmp_path):
    source = saved(tmp_path, "autoencoder=tiny", "quantizer=rvq", *overrides)
    with pytest.raises(ConfigError, match=message):
        main([source, *options, "-o", str(tmp_path / "out")])
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to", "torch", "--int8"], "--int8 is for --to onnx and --to openvino: --to torch has none"),
        (["--to", "onnx", "--bf16"], "--bf16 is for --to openvino: --to onnx has none"),
        (["--to", "hf", "--streaming"], "--streaming is for --to onnx and --to torch"),
        (["--to", "torch", "--streaming", "--frames-per-step", "0"], "expected 1 or more, got 0"),
        (["--to", "torch", "--frames-per-step", "2"], "is for --streaming"),
        (["--to", "torch", "--zero-padding"], "EnCodec of transformers: nowhere is none"),
        (["--to", "torch", "--dry-run"], "--dry-run is for --push REPO"),
        (["--to", "torch", "--push", "me/codec"], "huggingface_hub is not installed: pip install"),
    ],
)
def test_options_that_mean_nothing_are_told_before_the_model_is_read(options, message, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=message):
        main(["nowhere", *options, "-o", str(tmp_path / "out")])


def test_a_codec_of_no_shape_of_transformers_is_told_before_anything_is_written(tmp_path):
    codec = model("autoencoder=tiny", "quantizer=fsq")
    with pytest.raises(ConfigError, match="not of the shape of DAC in transformers"):
        export.export(codec, "hf", tmp_path / "out", Options(), lambda **found: "")
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_a_foreign_checkpoint_and_a_missing_one_are_refused(tmp_path):
    source = saved(tmp_path)
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("mine")
    with pytest.raises(FileError, match=r"taken: exists already: name another folder"):
        main([source, "--to", "codec", "-o", str(taken)])
    assert (taken / "mine.txt").read_text() == "mine"
    with pytest.raises(FileNotFoundError, match="no such model"):
        main([str(tmp_path / "nowhere"), "--to", "codec", "-o", str(tmp_path / "out")])
    (tmp_path / "model" / "model.safetensors").write_bytes(b"\x08" + bytes(20))
    with pytest.raises(ConfigError, match="damaged"):
        main([source, "--to", "codec", "-o", str(tmp_path / "out")])


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    with pytest.raises(ConfigError, match=r'no_such_package.*pip install "neural-audio-codec\[export\]"'):
        verification.optional("no_such_package.part")


def test_a_dry_push_says_what_it_would_upload(tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["--push", "me/codec", "--dry-run", "--license", "cc-by-4.0"]
    assert main([saved(tmp_path), "--to", "codec", "-o", str(out), *arguments]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("would upload 3 files") and line.endswith(
        "README.md, config.yaml, model.safetensors"
    )
    assert "to me/codec" in line
    assert "license: cc-by-4.0" in (out / "README.md").read_text()
    assert load(out).codec_id() == load(tmp_path / "model").codec_id()
    assert push(out, "me/codec", True) == line
    assert run_snippet(out)["codes"].shape == (1, 3, 188)


def test_a_push_uploads_the_folder_and_tells_what_went_wrong(tmp_path, monkeypatch):
    calls = []

    class Api:
        def create_repo(self, repository, exist_ok):
            calls.append((repository, exist_ok))

        def upload_folder(self, repo_id, folder_path):
            calls.append((repo_id, folder_path))
            if repo_id == "me/refused":
                raise RuntimeError("no token")

    monkeypatch.setattr(export, "optional", lambda name: SimpleNamespace(HfApi=Api))
    (tmp_path / "model.bin").write_bytes(bytes(10))
    assert push(tmp_path, "me/codec", False).startswith("uploaded 1 files")
    assert calls == [("me/codec", True), ("me/codec", str(tmp_path))]
    with pytest.raises(ConfigError, match=r"--push me/refused: no token; the folder .* is complete"):
        push(tmp_path, "me/refused", False)


def exports_table() -> dict[tuple[str, str], dict[str, str]]:
    """The rows of codec/export/README.md by group and option."""
    page = (Path(__file__).parent.parent / "codec/export/README.md").read_text()
    lines = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    (head,) = [line for line in lines if line[0] == "group"]
    rows = [line for line in lines if line[0] in ("autoencoder", "quantizer")]
    return {
        (row[0], name): dict(zip(head[2:], row[2:], strict=True))
        for row in rows
        for name in re.findall(r"`(\w+)`", row[1])
    }


def test_the_table_of_exports_has_every_option_and_agrees_with_these_tests():
    table = exports_table()
    assert table.keys() == {(g, name) for g in ("autoencoder", "quantizer") for name in options(g)}
    for (group, name), cells in table.items():
        whole = {cells[form] for form in ("onnx", "torch", "openvino")}
        assert whole == {"yes"}, name
        network = config(f"autoencoder={name}")["autoencoder"] if group == "autoencoder" else {"causal": True}
        network = network.get("encoder", network)  # of two halves
        causal = network.get("layers", network)["causal"]
        assert cells["onnx-steps"] == ("yes" if causal else "no"), name


def mimi(quantizer: str) -> tuple[str, ...]:
    widths = (f"quantizer.{part}.quantizer_dim=8" for part in ("semantic", "acoustic"))
    return "autoencoder=mimi", f"quantizer={quantizer}", *widths


@pytest.mark.slow
def test_the_table_of_exports_agrees_with_what_has_a_shape_of_transformers():
    hosts = [f"autoencoder={name}" for name in ("encodec", "dac_24khz")]

    def fits(*overrides: str) -> bool:
        narrow = small_autoencoder(overrides[0].removeprefix("autoencoder="), dim=64)
        try:
            return bool(shape_of(build_codec(config(*overrides, *narrow)["model"])))
        except ConfigError:
            return False

    for (group, name), cells in exports_table().items():
        partner = {"dac": "factorized_rvq", "wavtokenizer": "vq_4096"}.get(name.partition("_")[0], "rvq")
        pairs = (
            [(f"autoencoder={name}", f"quantizer={partner}")]
            if group == "autoencoder"
            else [(host, f"quantizer={name}") for host in hosts]
        )
        pairs += [mimi(name)] if name.startswith("split_rvq") else []
        pairs += [mimi("split_rvq")] if name == "mimi" else []
        assert cells["hf"] == ("yes" if any(fits(*pair) for pair in pairs) else "no"), name


def runtime():
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason='needs ONNX Runtime: pip install -e ".[export]"')


class There(nn.Module):
    """Codes of latents, and the latents that they stand for."""

    def __init__(self, codec: Codec):
        super().__init__()
        self.codes = graphs.Codes(codec)
        self.quantizer = codec.quantizer

    def forward(self, latents):
        codes = self.codes(latents)
        return codes, graphs.as_batch(self.quantizer.decode(graphs.in_one_row(codes)), codes.shape[0])


# One of every structure and codebook; the others have their graphs.
SAMPLED = {
    "rvq",
    "multiscale_rvq",
    "fsq",
    "residual_fsq",
    "factorized_rvq",
    "lfq",
    "bsq",
    "simvq",
    "vq_cosine",
}
SAMPLED |= {"qinco", "grouped_rvq", "blockwise_vq", "split_rvq", "gumbel", "random_projection"}


def few_stages(name: str) -> list[str]:
    """Override for at most three stages: more are the same graph again, and take minutes to convert."""
    node = config(f"quantizer={name}")["quantizer"]
    fixed = node.get("strides") or node.get("codebook_sizes") or node.get("depths")
    many = node.get("num_quantizers", 0) > 3 and not fixed
    return ["quantizer.num_quantizers=3"] if many else []


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in SAMPLED else pytest.mark.exhaustive)
        for name in distinct("quantizer")
        if name not in NO_CODES
    ],
)
@torch.no_grad()
def test_every_quantizer_with_codes_runs_in_onnx_runtime(name, tmp_path):
    runtime()
    codec = model("autoencoder=tiny", f"quantizer={name}", *few_stages(name))
    quantizer = codec.quantizer
    frames = quantizer.stride * torch.export.Dim("frames") if quantizer.stride > 1 else graphs.FREE
    example = torch.zeros(2, quantizer.dim, 6 * quantizer.stride)
    shapes = ({0: graphs.FREE, 2: frames},)
    plain = graphs.without_normalization(codec)
    program = torch.export.export(There(plain), (example,), dynamic_shapes=shapes)
    onnx_export.write_onnx(program, tmp_path / "q.onnx", (["latents"], ["codes", "back"]), {})
    session = onnx_export.Session(tmp_path / "q.onnx")
    for batch, count in ((1, 1), (3, 17)):
        latents = codec.latents(clip(codec, batch, count * codec.hop_length))
        codes, back = session(latents)
        expected = codec.quantizer.encode(latents)
        assert codes.shape == expected.shape and (codes == expected).float().mean() > 0.98
        torch.testing.assert_close(back, quantizer.decode(codes), rtol=1e-5, atol=1e-5)


class Latents(nn.Module):
    """Latents of codes of some or all stages, as decoders compute them."""

    def __init__(self, codec: Codec):
        super().__init__()
        self.quantizer = codec.quantizer

    def forward(self, codes):
        return self.quantizer.decode(graphs.all_stages(codes, self.quantizer.num_quantizers))


@pytest.mark.parametrize("name", [name for name in distinct("quantizer") if name not in NO_CODES])
@torch.no_grad()
def test_a_traced_quantizer_decodes_any_number_of_stages(name):
    codec = model("autoencoder=tiny", f"quantizer={name}")
    codes = codec.encode(clip(codec, 1, 17 * codec.hop_length))
    shapes = ({1: graphs.stages_of(codec)},)
    program = torch.export.export(Latents(codec).eval(), (codes,), dynamic_shapes=shapes).module()
    for n in range(1, 1 + codec.quantizer.num_quantizers):
        expected = codec.quantizer.decode(codes[:, :n])
        torch.testing.assert_close(program(codes[:, :n]), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["rvq", pytest.param("multiscale_rvq", marks=pytest.mark.exhaustive)])
@torch.no_grad()
def test_decoders_in_onnx_runtime_take_any_number_of_stages(name, tmp_path, capsys):
    runtime()
    source = saved(tmp_path, "autoencoder=tiny", f"quantizer={name}")
    out = tmp_path / "out"
    assert main([source, "--to", "onnx", "--streaming", "-o", str(out)]) == 0
    said = capsys.readouterr()
    codec = load(Path(source))
    codes = codec.encode(clip(codec, 2, 9 * codec.hop_length))
    assert codes.shape[1] == codec.quantizer.num_quantizers > 2
    whole, step = (onnx_export.Session(out / f"{stem}.onnx") for stem in ("decoder", "decoder_step"))
    assert step.inputs[0].shape == [1, "stages", 1]
    assert whole.inputs[0].shape == ["batch", "stages", "frames"]
    for n in range(1, 1 + codes.shape[1]):
        expected = codec.decode(codes[:, :n])
        torch.testing.assert_close(whole(codes[:, :n])[0], expected, rtol=0, atol=1e-5)
        heard = step_graphs.run_steps(step, step.initial, codes[:, :n], 1)
        torch.testing.assert_close(heard, expected, rtol=0, atol=1e-5)
    assert "fewer stages: " in said.out and "or of codes[:, :n]" in (out / "README.md").read_text()
    # A line a step, in order, each with the time that has passed.
    lines = [line for line in said.err.splitlines() if line.startswith("elapsed ")]
    assert all(re.match(r"elapsed (\d+:)?\d\d:\d\d: \w", line) for line in lines)
    assert [line.split(": ", 1)[1] for line in lines] == [
        f"loading {source}",
        *("tracing the decoder", "tracing the encoder", "writing decoder.onnx", "writing encoder.onnx"),
        *("tracing the encoder_step", "tracing the decoder_step"),
        *("writing encoder_step.onnx", "writing decoder_step.onnx"),
        *("comparing whole signals with the codec", "comparing the decoder with fewer stages"),
        "comparing steps with the codec",
    ]


def test_a_decoder_that_is_wrong_with_fewer_stages_is_refused(tmp_path, monkeypatch):
    def last_stages(codes, count):
        lacking = torch.full_like(codes[:, :1], -1).expand(-1, count, -1)
        return torch.cat([lacking, codes], 1)[:, -count:]

    source = saved(tmp_path)
    monkeypatch.setattr(graphs, "all_stages", last_stages)
    with pytest.raises(ConfigError, match=r"torch, fewer stages, is not the codec.*nothing was kept"):
        main([source, "--to", "torch", "-o", str(tmp_path / "out")])


# Their graphs are those of others, of other sizes.
REPEATED = tuple(f"autoencoder={name}" for name in ("soundstream", "dac_1", "dac_2", "vocos_l"))
IN_RUNTIME = [
    pytest.param(one, marks=pytest.mark.exhaustive if one[0].startswith(REPEATED) else ())
    for one in AUTOENCODERS
]


@pytest.mark.slow
@pytest.mark.parametrize("overrides", IN_RUNTIME, ids=lambda o: ",".join(o))
def test_every_architecture_runs_in_onnx_runtime(overrides, tmp_path):
    runtime()
    codec = model(*overrides, "quantizer=rvq")
    causal = codec.autoencoder.encoder_context.after == codec.autoencoder.decoder_context.after == 0
    found = export_onnx(codec, tmp_path, Options(streaming=causal))
    assert found.keys() == {"whole signals", "fewer stages"} | ({"streamed"} if causal else set())
    for comparison in found.values():
        assert comparison.max_error < 1e-4 and comparison.agreement > 0.98 and comparison.snr > 70


@pytest.mark.slow
def test_int8_graphs_are_smaller_and_near_and_their_quantizer_is_untouched(tmp_path):
    runtime()
    import onnx

    codec = model("autoencoder=soundstream", "quantizer=rvq")
    found = export_onnx(codec, tmp_path, Options(streaming=True, int8=True))
    for name in ("encoder", "decoder", "encoder_step", "decoder_step"):
        graph = onnx.load(str(tmp_path / f"{name}.onnx")).graph
        eights = [t for t in graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) > 1]
        assert len(eights) > 10, name
        # a codebook is 32 x 16, its transpose 16 x 32
        assert any(list(t.dims) in ([32, 16], [16, 32]) for t in graph.initializer if t.data_type == 1)
    for comparison in found.values():
        # Random weights: the latents hardly differ, so that a little noise changes their codes.
        assert comparison.agreement > 0.1 and comparison.snr > 15 and comparison.max_error > 1e-6


@torch.no_grad()
def with_far_latents(codec: Codec) -> Codec:
    """The codec, its latents spread and its codebooks begun anew: of random weights they hardly differ."""
    last = [layer for layer in codec.autoencoder.encoder.modules() if isinstance(layer, nn.Conv1d)][-1]
    latents = codec.latents(clip(codec, 4, 40 * codec.hop_length))
    last.bias -= latents.mean((0, 2))
    for parameter in last.parameters():
        parameter /= latents.std(2).mean()
    for name, buffer in codec.quantizer.named_buffers():
        if name.endswith("initialised"):
            buffer.fill_(False)
    return started(codec)


@pytest.mark.slow
def test_openvino_s_graphs_are_the_codec(tmp_path):
    pytest.importorskip("openvino", reason='needs OpenVINO: pip install -e ".[openvino]"')
    runtime()
    out, source = tmp_path / "out", tmp_path / "model"
    with_far_latents(model("autoencoder=tiny", "quantizer=multiscale_rvq")).save(source)
    assert main([str(source), "--to", "openvino", "-o", str(out)]) == 0
    assert {path.suffix for path in out.iterdir()} == {".xml", ".bin", ".md"}
    run_snippet(out)
