"""Train a codec: python scripts/train.py data.root=/path/to/wavs"""

from codec.commands.main import train

if __name__ == "__main__":
    train()
