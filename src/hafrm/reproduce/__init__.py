"""Reproducing the paper: its numbers as data, its experiments as plans of runs, ours written beside theirs."""
