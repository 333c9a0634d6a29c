"""Fit a codec's entropy tables: python scripts/fit_entropy.py runs/tiny /path/to/wavs"""

from codec.commands.main import fit_entropy

if __name__ == "__main__":
    fit_entropy()
