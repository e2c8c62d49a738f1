"""Evaluation: score pairs of held-out data, keep the raw scores, and compute statistics from them."""
