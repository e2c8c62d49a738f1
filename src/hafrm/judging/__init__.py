"""Judges of responses: prompts, strict parsing, reply cache, tournaments, and the run that writes verdicts.

A judge is asked questions and gives ranks, or says why there are none; whatever can't be read is *unscored*, counted
by its reason and never wrong. What a judge says is data: it is parsed by a grammar and never executed.
"""
