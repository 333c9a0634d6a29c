"""Scores of reconstructions and statistics of codes."""
