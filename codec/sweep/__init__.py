"""Sweeps over options: runs at equal bitrate, Optuna, Ray."""
