"""Give a causal Vocos the weights of a centered one, to train it further.

    python scripts/cut_to_causal.py speech_16khz -o cut --lookahead 1

Depthwise kernels keep their taps at the same offsets and lose those of future frames. Codebooks start anew,
by k-means.
"""

import argparse
import copy
import sys
from pathlib import Path

import torch
from torch import Tensor

from codec.commands.errors import report_errors
from codec.config import ConfigError
from codec.layers.convnext import DepthwiseConv
from codec.model.saving import build_codec, load


def main() -> int:
    """Load, cut and save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="run, saved codec, checkpoint or name")
    parser.add_argument("-o", "--output", type=Path, required=True, help="new folder for the causal codec")
    parser.add_argument("--lookahead", type=int, default=0, help="frames of codes; default: %(default)s")
    options = parser.parse_args()
    if options.output.exists():
        raise ConfigError(f"{options.output} exists already: name a new folder")
    source = load(options.model)
    assert source.config is not None
    if source.config["autoencoder"].get("causal") is not False:
        raise ConfigError(f"{options.model} is no centered Vocos: there is nothing to cut")
    config = copy.deepcopy(source.config)
    config["autoencoder"] |= {"causal": True, "lookahead": options.lookahead}
    codec, state = build_codec(config), source.autoencoder.state_dict()
    centered = dict(source.autoencoder.named_modules())
    for name, module in codec.autoencoder.named_modules():
        if isinstance(module, DepthwiseConv):
            old = centered[name]
            assert isinstance(old, DepthwiseConv)
            state[f"{name}.weight"] = shifted(old.weight, module.left - old.left)
    codec.autoencoder.load_state_dict(state)
    codec.save(options.output)
    print(f"{options.output}: {options.model}, causal, {options.lookahead} frames of look-ahead")
    return 0


def shifted(weight: Tensor, taps: int) -> Tensor:
    """Kernels `[C, 1, K]` moved back by a number of taps, with zeros before them."""
    return torch.nn.functional.pad(weight.detach(), (taps, 0))[..., : weight.shape[-1]]


if __name__ == "__main__":
    sys.exit(report_errors(main))
