"""Training one configuration: `loop` goes through the epochs, `coursework_step` through one."""
