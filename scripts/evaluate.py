"""Evaluate a codec: python scripts/evaluate.py runs/tiny /path/to/wavs"""

from codec.cli import evaluate

if __name__ == "__main__":
    evaluate()
