"""Published codecs through `transformers`: small random models, saved to a folder, against themselves."""

import json

import numpy as np
import pytest
import torch

transformers = pytest.importorskip("transformers", reason="published codecs are read by transformers")

from codec.audio.writing import write_wav  # noqa: E402
from codec.commands.parsers import parse  # noqa: E402
from codec.commands.systems import build_model  # noqa: E402
from codec.config import ConfigError  # noqa: E402
from codec.evaluation.evaluate import Options, evaluate_system  # noqa: E402
from codec.evaluation.huggingface import HuggingFaceCodec  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


def encodec(**options):
    config = transformers.EncodecConfig(
        **{
            "num_filters": 2,
            "hidden_size": 16,
            "codebook_dim": 16,
            "codebook_size": 16,
            "num_lstm_layers": 1,
        },
        **{"target_bandwidths": [0.6, 1.2], "upsampling_ratios": [8, 5, 4, 2]} | options,
    )
    return transformers.EncodecModel(config)


def dac():
    config = transformers.DacConfig(
        **{
            "encoder_hidden_size": 4,
            "decoder_hidden_size": 16,
            "downsampling_ratios": [2, 4],
            "n_codebooks": 3,
        },
        **{"upsampling_ratios": [4, 2], "codebook_size": 16, "codebook_dim": 4, "sampling_rate": 8000},
    )
    return transformers.DacModel(config)


def mimi():
    config = transformers.MimiConfig(
        **{
            "hidden_size": 32,
            "num_filters": 4,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "head_dim": 16,
        },
        **{"num_key_value_heads": 2, "intermediate_size": 32, "codebook_size": 16, "codebook_dim": 16},
        **{"vector_quantization_hidden_dimension": 16, "num_quantizers": 4, "upsample_groups": 32},
    )
    return transformers.MimiModel(config)


CHUNKED = {
    **{
        "audio_channels": 2,
        "sampling_rate": 48000,
        "normalize": True,
        "chunk_length_s": 0.5,
        "overlap": 0.01,
    },
    **{"norm_type": "time_group_norm", "use_causal_conv": False},
}
MODELS = {"encodec": encodec, "encodec48": lambda: encodec(**CHUNKED), "dac": dac, "mimi": mimi}


@pytest.fixture(params=MODELS)
def saved(request, tmp_path):
    torch.manual_seed(0)
    model = MODELS[request.param]().eval()
    model.save_pretrained(tmp_path / "model")
    return model, tmp_path / "model"


@torch.inference_mode()
def test_codes_and_audio_are_those_of_the_model(saved):
    model, path = saved
    peer = HuggingFaceCodec(path, "peer")
    audio = 0.1 * torch.randn(1, peer.channels, 2 * peer.sample_rate)
    codes, points = peer.code(audio)
    points = list(points)
    assert codes.shape[:2] == (1, len(peer.codebook_sizes)) and len(points) == len(peer.codebook_sizes)
    assert int(codes.max()) < 16
    assert [point.num_quantizers for point in points] == list(range(1, len(points) + 1))
    highest = {"bandwidth": max(model.config.target_bandwidths)} if peer.kind == "encodec" else {}
    theirs = model(audio, **highest).audio_values.reshape(1, peer.channels, -1)[..., : audio.shape[-1]]
    ours = points[-1].estimate
    assert ours.shape == audio.shape
    torch.testing.assert_close(ours[..., : theirs.shape[-1]], theirs, atol=1e-5, rtol=1e-4)
    seconds = codes.shape[2] / peer.frame_rate
    assert points[0].bits == 4 * codes.shape[2]
    assert points[-1].bits / seconds == pytest.approx(peer.bitrate(len(points)), rel=0.01)


def test_a_peer_is_scored_at_the_rate_of_the_comparison(saved, tmp_path):
    _, path = saved
    noise = 0.1 * np.random.default_rng(0).standard_normal((1, 16_000), np.float32)
    write_wav(tmp_path / "a.wav", noise, 16_000)
    summary = evaluate_system(
        HuggingFaceCodec(path, "peer", [1]), [str(tmp_path / "a.wav")], tmp_path / "out", Options(16_000, 1)
    )
    assert (
        summary.means["kbit/s"] > 0
        and np.isfinite(summary.means["mel"])
        and summary.parameters["decoder"] > 0
    )


@torch.inference_mode()
def test_frames_of_a_peer_are_lost_or_it_says_why_not(saved, capsys):
    _, path = saved
    options = parse("evaluate", [f"hf:{path}", "wavs", "--packet-loss", "1e-9", "--num-quantizers", "2"])
    peer, *lossy = build_model(f"hf:{path}", "peer", "cpu", options)
    if peer.kind == "encodec":  # its reflection padding, or its chunks, have no equal here
        assert not lossy and "peer: left out of --packet-loss: " in capsys.readouterr().out
        return
    audio = 0.1 * torch.randn(1, peer.channels, 25 * peer.hop_length)
    codes, points = peer.code(audio)
    expected = list(points)[-1].estimate
    assert len(lossy) == 4
    for system in lossy:
        codes_without_loss, points = system.code(audio)
        assert torch.equal(codes_without_loss, codes)
        torch.testing.assert_close(list(points)[-1].estimate, expected, atol=1e-4, rtol=1e-3)


def test_a_folder_without_a_codec_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no model of transformers"):
        HuggingFaceCodec(tmp_path, "peer")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ConfigError, match="type 'bert'; codecs are encodec, dac, mimi"):
        HuggingFaceCodec(tmp_path, "peer")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "dac"}))
    with pytest.raises(ConfigError, match="hf:"):
        HuggingFaceCodec(tmp_path, "peer")
