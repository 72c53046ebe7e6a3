"""Training one configuration: `loop` runs the epochs, `coursework_step` the steps of one epoch."""
