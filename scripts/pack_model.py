"""Put the averaged weights of a run into the package, in float16: `codec.load(NAME)` finds them.

python scripts/pack_model.py runs/speech_16khz speech_16khz
codec-encode speech_16khz /path/to/training/wavs -o tokens   # then tables for smaller .codec files
codec-fit-entropy speech_16khz tokens
"""

import argparse

import torch

from codec.model.saving import load
from codec.pretrained import FOLDER


def main() -> None:
    """Save the model of a run, a saved codec or a checkpoint under a name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", help="run folder, saved codec or checkpoint")
    parser.add_argument("name", help="name to load it by; a model of that name is replaced")
    asked = parser.parse_args()
    if not asked.name.isidentifier():
        parser.error(f"a name is a word of letters, digits and _, got {asked.name!r}")
    load(asked.model).save(FOLDER / asked.name, torch.float16)
    size = (FOLDER / asked.name / "model.safetensors").stat().st_size
    print(f"{FOLDER / asked.name}: {size / 1e6:.2f} MB; write its README.md: data, licenses, scores, command")


if __name__ == "__main__":
    main()
