"""Conditions of a codec: switched per call, frame and chunk of a stream; refused by a codec without them."""

import pytest
import torch
from composed import config
from test_export import run_snippet
from tokenized import small_codec

from codec import build_codec, load
from codec.audio.reading import read_audio
from codec.audio.writing import write_wav
from codec.commands import encode, export
from codec.commands.parsers import parse
from codec.commands.systems import build_systems
from codec.config import ConfigError, validate
from codec.evaluation.systems import NeuralCodec
from codec.export import onnx, openvino
from codec.export.streaming_graphs import step_programs
from codec.layers import FiLM
from codec.model.codec import Codec
from codec.model.inference import encode_batch, encode_long
from codec.tokens.dataset import TokenDataset


@pytest.fixture(scope="module")
def conditioned() -> Codec:
    """A codec whose two conditions give different codes."""
    codec = small_codec("conditioning=clean")
    with torch.no_grad():
        codec.conditioning.gamma[1] = torch.linspace(-1, 1, codec.autoencoder.latent_dim)
        codec.conditioning.beta[1] = 0.1
    return codec


def audio_for(codec: Codec, frames: int, batch: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(batch, 1, frames * codec.hop_length, generator=generator) * 0.6 - 0.3


def test_a_new_film_is_the_identity_and_a_trained_one_scales_and_shifts():
    film, latents = FiLM(3, ["a", "b"]), torch.randn(2, 3, 5)
    assert torch.equal(film(latents, "b"), latents)
    film.gamma.data[1], film.beta.data[1] = torch.tensor([2.0, 0.0, -1.0]), torch.tensor([0.0, 1.0, 0.5])
    by_frame = torch.tensor([[0, 1, 0, 1, 1], [1, 1, 1, 0, 0]])
    expected = latents.clone()
    for signal in range(2):
        for frame in range(5):
            if by_frame[signal, frame]:
                x = latents[signal, :, frame]
                expected[signal, :, frame] = torch.stack([2 * x[0], 0 * x[1] + 1, -x[2] + 0.5])
    torch.testing.assert_close(film(latents, by_frame), expected)
    torch.testing.assert_close(film(latents, torch.tensor([0, 1]))[0], latents[0])


@torch.no_grad()
def test_every_way_to_name_a_condition_gives_the_same_codes(conditioned, tmp_path):
    audio = audio_for(conditioned, 30, batch=2)
    as_is, clean = conditioned.encode(audio), conditioned.encode(audio, condition="clean")
    assert torch.equal(as_is, conditioned.encode(audio, condition="as_is"))
    assert (as_is != clean).float().mean() > 0.3
    mixed = conditioned.encode(audio, condition=torch.tensor([0, 1]))
    assert torch.equal(mixed[0], as_is[0]) and torch.equal(mixed[1], clean[1])
    _, quantized = conditioned(audio, condition="clean")
    assert torch.equal(quantized.codes, clean)

    conditioned.save(tmp_path)
    chosen = load(tmp_path, condition="clean")
    assert torch.equal(chosen.encode(audio), clean)
    assert torch.equal(encode_batch(chosen, list(audio))[1], clean[1])
    assert torch.equal(torch.cat(list(encode_long(chosen, iter(audio[0].split(777, -1)))), 1), clean[0])
    assert torch.equal(load(tmp_path).encode(audio), as_is)


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 4])
def test_a_stream_switches_between_chunks_as_the_whole_signal_does_by_frames(conditioned, frames):
    audio, hop = audio_for(conditioned, 24), conditioned.hop_length
    flags = torch.arange(24).div(frames, rounding_mode="floor").remainder(2)
    expected = conditioned.encode(audio, condition=flags[None])
    with conditioned.streaming() as stream:
        parts = [
            stream.encode(chunk, condition=("as_is", "clean")[number % 2])
            for number, chunk in enumerate(audio.split(frames * hop, -1))
        ]
    assert torch.equal(torch.cat(parts, 2), expected)


def test_conditions_that_do_not_exist_are_named(conditioned, tmp_path):
    audio, plain = audio_for(conditioned, 4), small_codec()
    with pytest.raises(ValueError, match="condition must be as_is or clean, got 'loud'"):
        conditioned.encode(audio, condition="loud")
    with pytest.raises(ValueError, match=r"int64 \[1\] or \[1, 4\], got torch.int64 \[3\]"):
        conditioned.encode(audio, condition=torch.tensor([0, 1, 0]))
    with pytest.raises(ValueError, match="trained without conditions"):
        plain.encode(audio, condition="clean")
    with pytest.raises(ValueError, match="trained without conditions"):
        plain.streaming().encode(audio, condition="clean")
    plain.save(tmp_path)
    with pytest.raises(ConfigError, match="condition 'clean': this codec was trained without conditions"):
        load(tmp_path, condition="clean")
    for index in (2, -1):
        with pytest.raises(ValueError, match="condition must be 0 to 1, got"):
            conditioned.encode(audio, condition=torch.tensor([index]))
    model = config("experiment=tiny", "conditioning=clean", "conditioning.dim=3")["model"]
    with pytest.raises(ConfigError, match="conditioning's dim 3 is not latent_dim"):
        build_codec(model)
    with pytest.raises(ValueError, match="two or more different conditions"):
        FiLM(4, ["same", "same"])


def test_an_option_of_conditioning_is_checked():
    model = config("experiment=tiny", "conditioning=clean")["model"]
    validate(model)
    model["conditioning"]["names"] = "clean"
    with pytest.raises(ConfigError, match=r"conditioning\.names"):
        validate(model)


def test_the_commands_take_a_condition_and_keep_their_outputs_apart(conditioned, tmp_path, capsys):
    write_wav(tmp_path / "a.wav", audio_for(conditioned, 20)[0].numpy(), conditioned.sample_rate)
    conditioned.save(tmp_path / "model")
    source, out = [str(tmp_path / "model"), str(tmp_path / "a.wav")], str(tmp_path / "tokens")
    assert encode.main([*source, "-o", out, "--format", "npy", "--workers", "0", "--condition", "clean"]) == 0
    recording = torch.from_numpy(read_audio(tmp_path / "a.wav")[0])[None]
    expected = conditioned.encode(recording, condition="clean")[0]
    assert torch.equal(TokenDataset(out)[0].long(), expected)
    with pytest.raises(ConfigError, match="--condition clean → none"):
        encode.main([*source, "-o", out, "--format", "npy", "--workers", "0"])
    with pytest.raises(ConfigError, match="condition must be as_is or clean, got 'loud'"):
        encode.main([*source, "-o", out + "2", "--condition", "loud"])
    small_codec().save(tmp_path / "plain")
    models = [str(tmp_path / name) for name in ("model", "plain")]
    systems = build_systems(models, source[1:], parse("evaluate", [*models, "--condition", "clean"]))
    assert [system.codec.condition for system in systems] == ["clean", None]
    assert "plain: evaluated without --condition" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="--condition clean: these models were trained without conditions"):
        build_systems(models[1:], [], parse("evaluate", [*models, "--condition", "clean"]))
    chosen = load(tmp_path / "model", condition="clean")
    assert NeuralCodec(chosen).identity() != NeuralCodec(conditioned).identity()


@torch.no_grad()
def test_an_export_has_the_condition_that_was_asked_for(conditioned, tmp_path):
    conditioned.save(tmp_path / "model")
    output = tmp_path / "out"
    arguments = [str(tmp_path / "model"), "--to", "torch", "-o", str(output), "--condition", "as_is"]
    assert export.main(arguments) == 0
    audio = audio_for(conditioned, 30)
    codes = torch.export.load(output / "encoder.pt2").module()(audio)
    assert torch.equal(codes, conditioned.encode(audio, condition="as_is"))
    assert "| condition | as_is |" in (output / "README.md").read_text()


FORMS = [
    ("torch", []),
    pytest.param("onnx", ["--streaming"], marks=pytest.mark.exhaustive),
    pytest.param("openvino", [], marks=pytest.mark.exhaustive),
    pytest.param("onnx", ["--int8"], marks=pytest.mark.exhaustive),
    pytest.param("openvino", ["--int8"], marks=pytest.mark.exhaustive),
]


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")  # of torch about its own format
@pytest.mark.parametrize(("form", "options"), FORMS)
def test_an_export_takes_the_condition_as_an_input(conditioned, tmp_path, capsys, form, options):
    conditioned.save(tmp_path / "model")
    output = tmp_path / "out"
    assert export.main([str(tmp_path / "model"), "--to", form, "-o", str(output), *options]) == 0
    checked = capsys.readouterr().out
    assert "whole signals, as_is: 6 clips" in checked and "whole signals, clean: 6 clips" in checked
    card = (output / "README.md").read_text()
    assert "| condition | as_is or clean |" in card and "# int64 [batch], 0: as_is, 1: clean" in card
    audio, indexes = audio_for(conditioned, 30, batch=2), torch.tensor([1, 0])
    expected = conditioned.encode(audio, condition=indexes)
    if form == "torch":
        assert torch.equal(torch.export.load(output / "encoder.pt2").module()(audio, indexes), expected)
    least = 0.5 if options == ["--int8"] else 0.98
    if form == "openvino":
        codes = openvino.Session(output).encode(audio, indexes)
        assert (codes == expected).float().mean() > least
    if form == "onnx":
        encoder = onnx.Session(output / "encoder.onnx")
        assert (encoder(audio, indexes)[0] == expected).float().mean() > least
        about = encoder.session.get_modelmeta().custom_metadata_map
        assert about["conditions"] == '["as_is", "clean"]' and encoder.inputs[1].name == "condition"
    run_snippet(output)


@torch.no_grad()
def test_a_step_graph_switches_its_condition_from_call_to_call(conditioned, tmp_path):
    graph, audio = step_programs(conditioned)["encoder_step"], audio_for(conditioned, 8)
    onnx.write_steps({"encoder_step": graph}, tmp_path, onnx.about(conditioned))
    session = onnx.Session(tmp_path / "encoder_step.onnx")
    assert [one.name for one in session.inputs[:3]] == ["audio", "condition", "state_0"]
    expected = conditioned.encode(audio, condition=torch.arange(8)[None] % 2)
    for step, state in ((graph.program.module(), graph.initial), (session, session.initial)):
        codes = []
        for number, chunk in enumerate(audio.split(conditioned.hop_length, -1)):
            frame, *state = step(chunk, torch.tensor([number % 2]), *state)
            codes.append(frame)
        assert torch.equal(torch.cat(codes, 2), expected)
