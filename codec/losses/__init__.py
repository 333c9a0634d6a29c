"""Losses: reconstruction, adversarial, and how they are weighed (`objective.py`)."""
