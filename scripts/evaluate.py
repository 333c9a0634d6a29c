"""Evaluate a codec: python scripts/evaluate.py runs/tiny data.root=/path/to/wavs"""

from codec.cli import evaluate

if __name__ == "__main__":
    evaluate()
