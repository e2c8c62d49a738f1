"""Sample N responses per prompt, score them, select the best, and measure the gain from selection."""
