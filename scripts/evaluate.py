"""Evaluate a codec: python scripts/evaluate.py runs/tiny data.root=/path/to/wavs"""

from codec.commands.main import evaluate

if __name__ == "__main__":
    evaluate()
