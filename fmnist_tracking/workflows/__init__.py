"""Wiring: a function for each command, which hands records from one module to another.

Modules that load TensorFlow, MLflow or matplotlib are imported inside the functions, so that
a command loads only what it uses.
"""
