"""Turn a token dataset into wavs: python scripts/decode.py MODEL tokens -o wavs"""

from codec.commands.main import decode

if __name__ == "__main__":
    decode()
