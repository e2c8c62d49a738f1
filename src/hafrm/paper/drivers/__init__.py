"""Drivers of the probes: run folders and data names in, one JSON file and one figure out."""
