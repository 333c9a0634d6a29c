"""Causal weights cut from centered ones."""

import cut_to_causal
import pytest
import torch
from tokenized import small_codec

from codec.config import ConfigError
from codec.layers.convnext import DepthwiseConv
from codec.model.saving import load


@pytest.mark.parametrize("lookahead", [0, 1])
def test_a_cut_kernel_is_the_centered_one_without_its_future_taps(lookahead):
    centered = DepthwiseConv(3, 7, causal=False)
    causal = DepthwiseConv(3, 7, causal=True, lookahead=lookahead)
    with torch.no_grad():
        causal.weight.copy_(cut_to_causal.shifted(centered.weight, causal.left - centered.left))
        causal.bias.copy_(centered.bias)
        centered.weight[..., centered.left + 1 + lookahead :] = 0
        frames = torch.randn(2, 20, 3)
        torch.testing.assert_close(causal(frames), centered(frames))


def test_only_a_centered_vocos_is_cut(tmp_path, monkeypatch):
    small_codec().save(tmp_path / "seanet")
    arguments = ["cut", str(tmp_path / "seanet"), "-o", str(tmp_path / "cut")]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(ConfigError, match="no centered Vocos: there is nothing to cut"):
        cut_to_causal.main()
    monkeypatch.setattr("sys.argv", ["cut", "speech_16khz", *arguments[2:], "--lookahead", "1"])
    assert cut_to_causal.main() == 0
    network = load(tmp_path / "cut").autoencoder
    assert network.decoder_context.after is not None and network.encoder_context.before > 0
