"""Exploring a grid from a program, and reading what the store has; the command line calls the same.

`train` has what trains, `runs` has searches and trials as objects to work with.
"""
