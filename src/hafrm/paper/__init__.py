"""Reproduce the paper: its numbers as data, its experiments as plans of runs, and our results next to the printed ones.

`numbers` has the printed tables. `scales` defines the backbones and pairs that an experiment runs on, `runs` trains
what is missing and shares finished runs between experiments, `plans` lists what an experiment needs, and `registry`
names the experiments. `hafrm.report` writes the pages.
"""
