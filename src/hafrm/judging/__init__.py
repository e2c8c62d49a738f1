"""Judges of responses: prompts, strict parsing, reply cache, tournaments, and the run that writes verdicts.

A judge is asked questions and gives ranks, or the reason why there are none; whatever can't be read is *unscored* and
counted by its reason, never wrong. A judge's reply is data: it is parsed by a grammar and never executed.
"""
