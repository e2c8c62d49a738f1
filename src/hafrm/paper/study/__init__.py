"""The study: does hybrid alignment pay? Every comparison, on the backbones at hand, with seeds and paired tests.

`options` says what of it is asked for, `trials` which runs and scorings that is, `planning` in which order, `costs` for
how many hours. `work` does what is missing and keeps a `journal` of all that was started, `rates` chooses learning
rates, `words` is the bag-of-words rival. `results` turns raw scores into numbers, `telling` numbers into tables
and sentences, `drawing` into figures, both with the names of `labels`, and `publishing` puts them into the docs.
"""
