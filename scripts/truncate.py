"""Cut a compressed file to its first stages: python scripts/truncate.py IN -o OUT --num-quantizers 2"""

from codec.commands.main import truncate

if __name__ == "__main__":
    truncate()
