"""Imports, for all workers at once, what training and inference need.

It imports and computes nothing: the threads that TensorFlow begins with its first operation are
what a forked process does not have, and waits for.
"""

import gc

from fmnist_tracking import runtime, workers

workers.leave_others_alone()
runtime.own_process()
gc.disable()  # none of what is imported is garbage; a worker enables it again
runtime.import_tensorflow().get_logger().setLevel("ERROR")

from fmnist_tracking import data, metrics  # noqa: E402, F401
from fmnist_tracking.networks import build, models  # noqa: E402, F401
from fmnist_tracking.training import loop  # noqa: E402, F401

# Not looked at again, what the workers share stays shared.
gc.freeze()
