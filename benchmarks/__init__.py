"""Measurements of speed and memory; each is run by the command that its module names."""
