"""Training one configuration: `loop` runs the epochs, a `step` trains one of them."""
