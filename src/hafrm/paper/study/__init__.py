"""The study: does hybrid alignment help? All comparisons on the given backbones, with several seeds and paired tests.

`options` defines what to run, `trials` the runs and scorings this needs, `planning` their order, and `costs` estimates
the hours. `work` does what is missing and logs it in a `journal`, `rates` chooses learning rates, `words` is the
bag-of-words baseline. `results` turns raw scores into numbers, `telling` turns numbers into tables and sentences, and
`drawing` into figures, both with the names in `labels`; `publishing` writes them into the docs.
"""
