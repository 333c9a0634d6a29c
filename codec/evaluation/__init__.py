"""Evaluation of codecs: scores, bitrates, complexity, and the page that compares them."""
