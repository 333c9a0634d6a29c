"""Forecast a training: python scripts/plan.py data.root=/path/to/wavs"""

from codec.commands.main import plan

if __name__ == "__main__":
    plan()
