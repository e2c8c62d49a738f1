"""N responses a prompt, and the best of them: sampling, scoring, selection, and what selection is worth."""
