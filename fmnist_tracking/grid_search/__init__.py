"""The search: its points are planned, tried in worker processes, and recorded as trials.

`run` is the main path; `train` and `final` are those of a single training. `explore` submits every
point, `scheduler` sees to it that each is tried to its end, `worker` is what a worker process does,
`trial_logger` logs what happens to it.
"""
