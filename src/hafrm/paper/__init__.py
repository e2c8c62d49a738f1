"""Reproducing the paper: its numbers as data, its experiments as plans of runs, ours written beside theirs.

`paper` holds the printed tables. `scales` says on which backbones and pairs an experiment runs, `runs` trains what is
missing and shares finished runs between experiments, `plans` says what an experiment needs, and `registry` names the
experiments. `report` writes what they found.
"""
