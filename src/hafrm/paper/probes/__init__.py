"""Probes: the paper's smaller measurements on trained models, one a module, from loaded things to a typed result."""
