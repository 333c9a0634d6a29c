"""Compute a teacher's features of recordings: python scripts/features.py TEACHER /path/to/wavs -o features"""

from codec.commands.main import features

if __name__ == "__main__":
    features()
