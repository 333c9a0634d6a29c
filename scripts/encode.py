"""Encode recordings to a token dataset: python scripts/encode.py MODEL /path/to/wavs -o tokens"""

from codec.commands.main import encode

if __name__ == "__main__":
    encode()
