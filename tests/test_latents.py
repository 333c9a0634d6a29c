"""Continuous latents take every path that codes take: datasets, decoding, streaming, export, evaluation."""

import json
import shutil

import numpy as np
import pytest
import soundfile
import torch
from test_encoding import SMALL_SHARDS, contents
from tokenized import LAYOUTS, RATE, noise, small_codec, write_corpus

from codec.audio.reading import read_audio
from codec.bitstream.compress import compress
from codec.commands.decode import decode_dataset
from codec.commands.decode import main as decode
from codec.commands.encode import main as encode
from codec.commands.export import check_codec
from codec.commands.export import main as export
from codec.commands.export_tokens import main as export_tokens
from codec.commands.fit_entropy import main as fit_entropy
from codec.commands.stream import main as stream
from codec.config import ConfigError
from codec.evaluation.evaluate import evaluate
from codec.evaluation.systems import NeuralCodec
from codec.export.formats import Options
from codec.model.saving import load
from codec.quantizers import FixedSigma, Variational
from codec.system.files import FileError
from codec.tokens import TokenDataset, TokenError
from codec.tokens.encoding import encode_corpus
from codec.tokens.shards import Shards
from codec.tokens.sources import Settings

DIM = 4


@pytest.fixture(scope="module")
def kl():
    return small_codec("quantizer=kl", f"quantizer.latent_dim={DIM}")


@pytest.fixture(scope="module")
def model(kl, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kl")
    kl.save(folder)
    return str(folder)


@pytest.fixture(scope="module")
def wavs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder)
    return folder


@pytest.fixture(scope="module", params=LAYOUTS)
def corpus(request, kl, wavs, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "latents"
    encode_corpus(kl, [wavs], folder, Settings(request.param, **SMALL_SHARDS))
    return TokenDataset(folder)


def alone(codec, path) -> torch.Tensor:
    """Posterior mean `[D, F]` of one recording: the first half of the moments of its standardized latents."""
    with torch.inference_mode():
        latents = codec.latents(torch.from_numpy(read_audio(path, RATE)[0])[None])
        standard = codec.quantizer.standardize(latents.mT).mT
        return codec.quantizer.to_moments(standard)[0, :DIM]


def test_a_dataset_holds_the_posterior_means_of_its_recordings(kl, wavs, corpus):
    assert len(corpus) == 9 and corpus.codebook_sizes == ()
    for i in range(len(corpus)):
        expected = alone(kl, wavs / corpus.utterance(i).path)
        assert corpus[i].dtype == torch.float32 and corpus[i].shape == expected.shape
        torch.testing.assert_close(corpus[i], expected, rtol=0, atol=1e-4)
    whole, rate = corpus[8], corpus.frame_rate
    assert torch.equal(corpus.seconds(8, 0.1, 0.2), whole[:, int(0.1 * rate) : -int(-0.2 * rate // 1)])
    windows = corpus.windows(7)
    i, start = windows.place(5)
    assert torch.equal(windows[5], corpus[i][:, start : start + 7])


def test_statistics_are_those_of_all_frames(corpus):
    frames = torch.cat(list(corpus), dim=1).double()
    statistics = corpus.description["statistics"]
    assert statistics["count"] == frames.shape[1] == corpus.description["frames"]
    np.testing.assert_allclose(statistics["mean"], frames.mean(1), rtol=1e-9)
    np.testing.assert_allclose(statistics["std"], frames.std(1, correction=0), rtol=1e-9)


def test_float16_halves_the_values_and_is_decoded(kl, wavs, tmp_path):
    settings = Settings("npy", workers=0, dtype="float16")
    about = encode_corpus(kl, [wavs], tmp_path / "half", settings)
    half = TokenDataset(tmp_path / "half")
    assert about["dtype"] == "float16" and half.stored(3).dtype == np.float16
    assert torch.equal(half[3], torch.from_numpy(np.array(half.stored(3))).float())
    with pytest.raises(ConfigError, match="other settings: --dtype float16 → float32; name another folder"):
        encode_corpus(kl, [wavs], tmp_path / "half", Settings("npy", workers=0))
    for i, path in enumerate(decode_dataset(kl, half, tmp_path / "out")):
        expected = kl.decode(half[i][None], half.length(i))[0].detach().numpy()
        heard = soundfile.read(path, dtype="float32", always_2d=True)[0].T
        np.testing.assert_allclose(heard, expected.clip(-1, 1), atol=2 / 32768)


def test_latents_beyond_float16_are_reported(kl, wavs, tmp_path):
    loud = small_codec("quantizer=kl", f"quantizer.latent_dim={DIM}")
    with torch.no_grad():
        loud.quantizer.to_moments.weight.mul_(1e6)
    with pytest.raises(TokenError, match=r"nothing was encoded: .*latents are not finite in float16"):
        encode_corpus(loud, [wavs], tmp_path / "t", Settings("npy", workers=0, dtype="float16"))


def test_a_long_file_in_pieces_has_the_latents_of_the_whole(kl, tmp_path, monkeypatch):
    soundfile.write(tmp_path / "long.wav", noise(30_000, 1)[0], RATE)
    monkeypatch.setattr("codec.model.inference.PIECE_SECONDS", 0.11)
    encode_corpus(kl, [tmp_path / "long.wav"], tmp_path / "t", Settings("npy", batch_seconds=0.5, workers=0))
    expected = alone(kl, tmp_path / "long.wav")
    torch.testing.assert_close(TokenDataset(tmp_path / "t")[0], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_was_interrupted_goes_on_and_jobs_make_the_same_bytes(kl, wavs, tmp_path, layout, monkeypatch):
    settings = Settings(layout, **SMALL_SHARDS)
    encode_corpus(kl, [wavs], tmp_path / "whole", settings)
    write, written = Shards.write, []

    def stops(shards, shard, *arguments):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(shard)
        write(shards, shard, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Shards, "write", stops)
        with pytest.raises(KeyboardInterrupt):
            encode_corpus(kl, [wavs], tmp_path / "cut", settings)
    for job in (1, 0):
        encode_corpus(kl, [wavs], tmp_path / "cut", settings, jobs=(2, job))
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_a_damaged_byte_is_found_by_its_checksum(corpus, tmp_path):
    shutil.copytree(corpus.path, tmp_path / "t")
    offset = int(corpus.index.numbers["offset"][5])
    files = sorted((tmp_path / "t").rglob("*.npy"))
    shard = tmp_path / "t" / "shards" / f"{int(corpus.index.numbers['shard'][5]):05d}.arrow"
    path = shard if shard.is_file() else tmp_path / "t" / f"{corpus.utterance(5).path}.npy"
    assert path in files or path == shard
    content = bytearray(path.read_bytes())
    content[offset + 1 if path == shard else -1] ^= 1
    path.write_bytes(content)
    damaged = TokenDataset(tmp_path / "t")
    with pytest.raises(TokenError, match=r"damaged: .* differs from its CRC-32"):
        damaged.codes(5, 0, 1)
    assert torch.equal(damaged[8], corpus[8])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"latent_dim": 5}, "statistics: mean is not 5 numbers"),
        ({"latent_dim": "4"}, "statistics: mean is not 4 numbers|latent_dim"),
        ({"dtype": "float64"}, "not possible: dtype"),
        ({"statistics": {"count": 0, "mean": [0.0] * 4, "std": [1.0] * 4}}, "count is no number of frames"),
        ({"statistics": {"count": 1, "mean": [0.0] * 4, "std": [float("nan")] * 4}}, "std is not 4 numbers"),
    ],
)
def test_a_description_that_makes_no_sense_is_refused(corpus, tmp_path, change, reason):
    shutil.copytree(corpus.path, tmp_path / "t")
    path = tmp_path / "t" / "tokens.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(TokenError, match=reason):
        TokenDataset(tmp_path / "t")


def test_the_commands_encode_decode_and_stream_latents(kl, model, tmp_path, capsys):
    audio = noise(9000, 3)
    soundfile.write(tmp_path / "a.wav", audio[0], RATE)
    wav, npy = str(tmp_path / "a.wav"), str(tmp_path / "a.npy")
    assert (
        encode([model, str(tmp_path), "-o", str(tmp_path / "t"), "--dtype", "float16", "--workers", "0"]) == 0
    )
    np.save(npy, TokenDataset(tmp_path / "t").stored(0))
    assert decode([model, npy, "-o", str(tmp_path / "b.wav")]) == 0
    assert decode([model, str(tmp_path / "t"), "-o", str(tmp_path / "wavs")]) == 0
    assert stream([model, wav, "-o", str(tmp_path / "c.wav")]) == 0
    assert f"a frame, {DIM} latents" in capsys.readouterr().out
    expected = kl(torch.from_numpy(audio)[None])[0][0].detach().numpy()
    for name, error in (("b.wav", 2e-3), ("wavs/a.wav", 2e-3), ("c.wav", 1e-4)):
        heard = soundfile.read(tmp_path / name, dtype="float32", always_2d=True)[0].T
        np.testing.assert_allclose(heard[:, :9000], expected, atol=error)
    np.save(npy, np.zeros((DIM, 3), np.int64))
    with pytest.raises(FileError, match=r"latents must be floats \[D, F\]"):
        decode([model, npy, "-o", str(tmp_path / "d.wav")])


def test_any_chunks_give_the_latents_and_the_audio_of_the_whole(kl):
    audio = torch.from_numpy(noise(5000, 1, channels=2))[:, None]
    with torch.inference_mode(), kl.streaming(batch=2) as streaming:
        assert streaming.encode(audio[..., :0]).shape == (2, DIM, 0)
        parts = [streaming.encode(part) for part in audio.split(333, dim=2)]
        latents = torch.cat([*parts, streaming.encode(audio[..., :0], final=True)], dim=2)
        torch.testing.assert_close(latents, kl.encode(audio), rtol=0, atol=1e-4)
        heard = [streaming.decode(part) for part in latents.split(5, dim=2)]
        heard.append(streaming.decode(latents[..., :0], final=True))
        torch.testing.assert_close(torch.cat(heard, dim=2), kl.decode(latents), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "files"),
    [
        (["--to", "torch", "--streaming"], ["encoder.pt2", "decoder_step.pt2"]),
        pytest.param(["--to", "onnx"], ["encoder.onnx", "decoder.onnx"], marks=pytest.mark.slow),
        pytest.param(["--to", "openvino"], ["network.xml", "quantizer.xml"], marks=pytest.mark.slow),
    ],
)
@pytest.mark.filterwarnings("ignore")  # of torch about its own format
def test_exports_are_compared_and_kept(model, tmp_path, capsys, options, files):
    if "torch" not in options:
        pytest.importorskip("onnxruntime", reason='needs ONNX Runtime: pip install -e ".[export]"')
        pytest.importorskip("onnxscript", reason='needs ONNX Runtime: pip install -e ".[export]"')
    if "openvino" in options:
        pytest.importorskip("openvino", reason='needs OpenVINO: pip install -e ".[openvino]"')
    assert export([model, *options, "-o", str(tmp_path / "out")]) == 0
    assert "100.00% of the codes or latents agree" in capsys.readouterr().out
    assert {*files, "README.md"} <= {path.name for path in (tmp_path / "out").iterdir()}
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"float32 [batch, {DIM}, frames]" in card and "| bitrate | - |" in card
    assert "codes =" not in card and "`codes`" not in card


def test_an_encoder_whose_latents_differ_is_not_kept(model, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("codec.export.formats.load", lambda folder: wrong(model))
        with pytest.raises(ConfigError, match="98% of the codes"):
            export([model, "--to", "codec", "-o", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def wrong(model):
    """A codec that encodes a little differently and decodes alike."""
    codec = load(model)
    with torch.no_grad():
        codec.quantizer.to_moments.bias.add_(0.01)
    return codec


def test_an_evaluation_has_scores_and_no_rate(kl, wavs, tmp_path):
    summary = evaluate(kl, [str(wavs / "s1" / "utt 7.wav")], tmp_path, pictures=0)
    (point,) = summary.rate_distortion
    assert point["kbit/s"] is summary.means["kbit/s"] is None and np.isfinite(summary.means["mel"])
    assert summary.codebook_sizes == [] and summary.decode_ms > 0 and summary.ceiling is None
    assert NeuralCodec(small_codec("quantizer=none")).describe().ceiling


def read_hf(folder):
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra `tokens`")
    rows = [
        row for file in sorted((folder / "data").iterdir()) for row in parquet.read_table(file).to_pylist()
    ]
    return [np.array(row["latents"]) for row in rows]


def read_webdataset(folder):
    webdataset = pytest.importorskip("webdataset", reason="needs WebDataset")
    paths = list(map(str, sorted(folder.glob("*.tar"))))
    return [sample["npy"] for sample in webdataset.WebDataset(paths, shardshuffle=False).decode()]


def read_litdata(folder):
    litdata = pytest.importorskip("litdata", reason="needs litdata")
    return [row["latents"] for row in litdata.StreamingDataset(str(folder))]


@pytest.mark.filterwarnings("ignore")  # other libraries warn of their own dependencies
@pytest.mark.parametrize("read", [read_hf, read_webdataset, read_litdata])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_exports_hold_the_latents_and_their_statistics(kl, wavs, tmp_path, monkeypatch, dtype, read):
    encode_corpus(kl, [wavs / "s1"], tmp_path / "latents", Settings("npy", dtype=dtype, workers=0))
    stored, name = TokenDataset(tmp_path / "latents"), read.__name__.removeprefix("read_")
    monkeypatch.setattr("codec.tokens.exports.FILE_CODES", 2000)
    if name == "litdata":
        pytest.importorskip("litdata", reason="needs litdata")
    assert export_tokens([str(stored.path), "--to", name, "-o", str(tmp_path / "out")]) == 0
    rows = read(tmp_path / "out")
    assert len(rows) == len(stored)
    for row, latents in zip(rows, stored, strict=True):
        assert np.array_equal(row, latents) and (name == "hf" or str(row.dtype).endswith(dtype))
    about = (tmp_path / "out" / ("README.md" if name == "hf" else "tokens.json")).read_text()
    about = json.loads(about.split("```json")[-1].split("```")[0])
    assert about["statistics"] == stored.description["statistics"] and about["dtype"] == dtype
    assert about["latent_dim"] == DIM and "codebook_sizes" not in about


def test_what_needs_codes_refuses_in_a_sentence(kl, model, wavs, corpus, tmp_path, capsys):
    output = ["-o", str(tmp_path / "out")]
    for options in (["--num-quantizers", "2"], ["--beam", "2"]):
        with pytest.raises(ConfigError, match="this codec has continuous latents"):
            encode([model, str(wavs), *output, *options])
    codes = small_codec()
    with pytest.raises(ConfigError, match="--dtype is for continuous latents"):
        encode_corpus(codes, [wavs], tmp_path / "out", Settings("npy", dtype="float32"))
    with pytest.raises(ConfigError, match="no codes to write"):
        compress(kl, wavs / "s1" / "utt 1.wav", tmp_path / "a.codec")
    with pytest.raises(ConfigError, match="no codes to fit tables to"):
        fit_entropy([model, str(wavs), "-o", str(tmp_path / "tables")])
    with pytest.raises(ConfigError, match="condition"):
        fit_entropy([model, str(wavs), "-o", str(tmp_path / "tables"), "--condition", "clean"])
    assert capsys.readouterr().out == ""  # no target is promised before the refusal
    for name in ("lhotse", "megatron", "codec-bpe"):
        with pytest.raises(ConfigError, match=r"holds continuous latents, .*: hf, webdataset, litdata"):
            export_tokens([str(corpus.path), "--to", name, *output])
    with pytest.raises(ConfigError, match="no codes to export to transformers"):
        check_codec(kl, "hf", Options())
    with pytest.raises(ConfigError, match="--int8 and --bf16 are for codes"):
        check_codec(kl, "onnx", Options(int8=True))
    with pytest.raises(ConfigError, match="holds continuous latents, which have no stages"):
        TokenDataset(corpus.path, num_quantizers=1)
    with pytest.raises(ConfigError, match="continuous latents have no stages"):
        stream(
            [model, str(wavs / "s1" / "utt 1.wav"), "-o", str(tmp_path / "a.wav"), "--num-quantizers", "1"]
        )
    with pytest.raises(ConfigError, match="other latents, or codes where these are latents"):
        decode_dataset(codes, corpus, tmp_path / "out", any_codec=True)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("deviation", [0.5, None])
def test_the_divergence_is_that_of_torch_and_noise_has_its_deviation(deviation):
    torch.manual_seed(0)
    vae = Variational(6, 3) if deviation is None else FixedSigma(6, 3, deviation)
    vae.initialise(torch.randn(500, 6))
    latents = torch.randn(2, 6, 4000)
    mean = vae.encode(latents)
    scale = torch.full_like(mean, deviation) if deviation else (vae.moments(latents)[1] / 2).exp()
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, scale), normal(0.0, 1.0)).mean()
    drawn = vae(latents, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(drawn.losses["kl"], expected)
    assert torch.equal(vae(latents).latents, vae.decode(mean))
    error = (drawn.latents - vae.decode(mean)).var()
    spread = vae.out_proj.weight.square().sum((1, 2)).mean() * scale.square().mean()
    torch.testing.assert_close(error, spread, rtol=0.1, atol=0)
    with pytest.raises(ValueError, match="continuous latents must be float"):
        vae.decode(mean[:, :2])
    with pytest.raises(ValueError, match="NaN or infinite"):
        vae.decode(mean / 0)
