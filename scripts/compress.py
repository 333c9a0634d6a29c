"""Write a recording as a small file: python scripts/compress.py runs/tiny in.wav -o out.codec"""

from codec.commands.main import compress

if __name__ == "__main__":
    compress()
