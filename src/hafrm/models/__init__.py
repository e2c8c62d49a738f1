"""The two-headed model, its checkpoints, references and scorers; independent of data files and training."""
