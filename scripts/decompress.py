"""Write a compressed file as a wav: python scripts/decompress.py runs/tiny in.codec -o out.wav"""

from codec.commands.main import decompress

if __name__ == "__main__":
    decompress()
