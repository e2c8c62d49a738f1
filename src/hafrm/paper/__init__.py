"""Reproduce the paper: its numbers as data, its experiments as plans of runs, and our results next to the printed ones.

One pipeline, from data to pages; each module imports only those above it:

    numbers      the paper's printed tables
    world/       the simulated world: data, oracle and backbones
    scales       what to run on: a job, and what a scale consists of
    presets      the three scales: the world, small backbones, and the paper's
    samples      the pairs that a run reads, with fingerprints
    runs         what is trained: reward models and policies, each identified by its settings
    plans        what to run, as data: parts of rows and columns, scorings, plans
    resources    disk and memory of runs, from the architecture of backbones
    costs        estimated seconds of runs and scorings
    record       the permanent record of a study: its journal, and results without weights and texts
    stages       the study's order of work: choice of learning rates, what is missing
    references   models to compare with that need no training: a bag of words, frozen backbones
    executor     training and scoring what is missing
    measures     accuracies, paired differences and their intervals
    tables       what pages share: names, sentences, tables and bars of accuracies
    settings     Tables 1, 5, 8, 9 and 10, Figure 10
    accuracy     Tables 2 and 3, Figure 3
    ratios       Figure 6
    selections   which responses the methods' models choose
    best         Figures 4, 8 and 9, Tables 4 and 11
    probes/      Figures 2 and 7, Tables 6 and 7, Appendix D
    policies     Figure 5, and whether PPO learns
    study        the study's numbers
    study_page   the study's tables, figures and sentences
    publishing   the study's pages in a checkout
    experiments  all experiments by name, each with its plan and its findings

The words of the pages are in `pages.md.j2` and `study.md.j2`; `hafrm.report` writes the pages.
"""
