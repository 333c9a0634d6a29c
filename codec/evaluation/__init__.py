"""Measuring codecs: scores, rates, costs, and the page that compares them."""
