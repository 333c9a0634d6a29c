"""What codec-export writes gives the codec's codes and audio, in the software that it is for."""

import pytest
import torch
from composed import config, options, shrink
from torch import nn
from torch.nn.utils import parametrize

from codec import graphs, step_graphs, verification
from codec.config import ConfigError
from codec.export import Options, lengths, main, push
from codec.layers import LSTM, ConvTranspose1d
from codec.model import Codec, build_codec, load
from codec.verification import Comparison, clip, compare

NARROW = {"encoder_channels": 4, "decoder_channels": 4, "latent_dim": 16, "dim": 16, "num_groups": 4}
NARROW |= {"codebook_size": 32, "quantizer_dim": 8, "num_quantizers": 3, "codebook_bits": 6}
AUTOENCODERS = [[f"autoencoder={name}"] for name in options("autoencoder")] + [
    ["autoencoder=tiny", "autoencoder.layers.causal=false", "autoencoder.strides=[3,2]", "channels=2"],
    ["autoencoder=encodec", "autoencoder.layers.causal=false"],
]
NO_CODES = {"none", "kl"}


def model(*overrides: str) -> Codec:
    """A narrow codec with started codebooks."""
    torch.manual_seed(0)
    node = config(*overrides)["model"]
    shrink(node, NARROW)
    codec = build_codec(node).eval()
    if wanted := codec.quantizer.pool_size():
        spread = codec.latents(clip(codec, 2, 4000)).std().item()
        codec.quantizer.initialise(spread * torch.randn(wanted, codec.quantizer.dim))
    return codec


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
@pytest.mark.parametrize("name", ["tiny", "encodec"])
def test_steps_are_the_codec_on_the_whole_signal(name, frames):
    codec = model(f"autoencoder={name}", "quantizer=rvq")
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


def test_exported_programs_load_in_a_file(tmp_path, capsys):
    out = tmp_path / "out"
    assert main([saved(tmp_path), "--to", "torch", "--streaming", "-o", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {
        *("encoder.pt2", "decoder.pt2", "encoder_step.pt2", "decoder_step.pt2", "README.md")
    }
    assert "100.00% of the codes agree" in capsys.readouterr().out
    card = (out / "README.md").read_text()
    assert card.startswith("---\ntags:") and "100.00%" in card and "torch.export.load" in card


def test_nothing_is_kept_of_a_copy_that_differs(tmp_path, monkeypatch):
    class Wrong(graphs.Decoder):
        def forward(self, codes):
            return super().forward(codes) + 1e-3

    source = saved(tmp_path)
    monkeypatch.setattr(graphs, "Decoder", Wrong)
    with pytest.raises(ConfigError, match=r"torch, whole signals, is not the codec.*nothing was kept.*0.001"):
        main([source, "--to", "torch", "-o", str(tmp_path / "out")])
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


def test_codes_that_differ_or_are_not_finite_are_refused():
    codec = model("autoencoder=tiny", "quantizer=rvq")
    shapes = [(1, codec.hop_length * 20)]
    other = compare(codec, lambda audio: codec.encode(audio.flip(2)), codec.decode, shapes)
    assert other.agreement < 0.9
    with pytest.raises(ConfigError, match="not the codec"):
        other.require("it")
    nan = compare(codec, codec.encode, lambda codes: codec.decode(codes) * float("nan"), shapes)
    with pytest.raises(ConfigError, match="within inf"):
        nan.require("it")
    with pytest.raises(ConfigError, match="codes are"):
        compare(codec, lambda audio: codec.encode(audio)[:, :1], codec.decode, shapes)
    Comparison(1e-5, 1.0, 100.0, 1).require("it")


@pytest.mark.parametrize(
    ("overrides", "options", "message"),
    [
        (
            ["autoencoder.layers.causal=false"],
            ["--to", "onnx", "--streaming"],
            "not causal.*without --streaming",
        ),
        (["quantizer=none"], ["--to", "torch"], "no codes"),
        ([], ["--to", "torch", "--int8"], "--int8 and --bf16 are for"),
        ([], ["--to", "hf", "--streaming"], "the model itself"),
        ([], ["--to", "torch", "--streaming", "--frames-per-step", "0"], "at least 1, got 0"),
    ],
)
def test_what_cannot_be_exported_is_told(overrides, options, message, tmp_path):
    source = saved(tmp_path, "autoencoder=tiny", "quantizer=rvq", *overrides)
    with pytest.raises(ConfigError, match=message):
        main([source, *options, "-o", str(tmp_path / "out")])
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


def test_an_existing_folder_a_foreign_checkpoint_and_a_missing_one_are_refused(tmp_path):
    source = saved(tmp_path)
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"taken exists: name another folder with -o"):
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


def runtime():
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason='needs ONNX Runtime: pip install -e ".[export]"')


def exported(tmp_path, codec: Codec, asked: Options) -> dict[str, Comparison]:
    from codec.export import export_onnx

    return export_onnx(codec, tmp_path, asked)


CASES = [(overrides, "rvq") for overrides in AUTOENCODERS]
SHORT = ["autoencoder=tiny", "autoencoder.strides=[4]"]  # a small graph around each quantizer
CASES += [(SHORT, name) for name in options("quantizer") if name not in NO_CODES]
SAMPLED = {"rvq", "multiscale_rvq"}


@pytest.mark.parametrize(
    ("overrides", "quantizer"),
    [
        pytest.param(
            overrides,
            quantizer,
            marks=[] if overrides == SHORT and quantizer in SAMPLED else pytest.mark.slow,
            id=f"{','.join(overrides)},{quantizer}",
        )
        for overrides, quantizer in CASES
    ],
)
def test_every_architecture_and_quantizer_runs_in_onnx_runtime(overrides, quantizer, tmp_path):
    runtime()
    codec = model(*overrides, f"quantizer={quantizer}")
    causal = not any("causal=false" in option or "dac" in option for option in overrides)
    found = exported(tmp_path, codec, Options(streaming=causal))
    assert found.keys() == ({"whole signals", "streamed"} if causal else {"whole signals"})
    for comparison in found.values():
        assert comparison.max_error < 1e-4 and comparison.agreement > 0.98 and comparison.snr > 70


@pytest.mark.slow
def test_int8_graphs_are_smaller_and_near_and_their_quantizer_is_untouched(tmp_path):
    runtime()
    import onnx

    codec = model("autoencoder=soundstream", "quantizer=rvq")
    for int8 in (False, True):
        (tmp_path / str(int8)).mkdir()
        found = exported(tmp_path / str(int8), codec, Options(streaming=True, int8=int8))
    for name in ("encoder", "decoder", "encoder_step", "decoder_step"):
        graph = onnx.load(str(tmp_path / "True" / f"{name}.onnx")).graph
        eights = [t for t in graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) > 1]
        assert len(eights) > 10, name
        # a codebook is 32 x 16, its transpose 16 x 32
        assert any(list(t.dims) in ([32, 16], [16, 32]) for t in graph.initializer if t.data_type == 1)
    for comparison in found.values():
        assert comparison.agreement > 0.5 and comparison.snr > 15 and comparison.max_error > 1e-6


@pytest.mark.slow
def test_openvino_s_graphs_are_the_codec(tmp_path):
    pytest.importorskip("openvino", reason='needs OpenVINO: pip install -e ".[openvino]"')
    runtime()
    for name in ("rvq", "multiscale_rvq"):
        out = tmp_path / name
        source = tmp_path / f"{name}-model"
        model("autoencoder=soundstream", f"quantizer={name}").save(source)
        assert main([str(source), "--to", "openvino", "-o", str(out)]) == 0
        assert {path.suffix for path in out.iterdir()} == {".xml", ".bin", ".md"}
