"""Workers that run functions and report while they do; they know no TensorFlow and no MLflow."""

from fmnist_tracking.workers.fork_server import (
    end_fork_server,
    leave_others_alone,
    start_helpers,
)
from fmnist_tracking.workers.pool import (
    NoWorker,
    OnReport,
    Silence,
    TaskFailed,
    TimedOut,
    Worker,
    WorkerDied,
    WorkerPool,
)
from fmnist_tracking.workers.process import LocalWorker

__all__ = [
    "LocalWorker",
    "NoWorker",
    "OnReport",
    "Silence",
    "TaskFailed",
    "TimedOut",
    "Worker",
    "WorkerDied",
    "WorkerPool",
    "end_fork_server",
    "leave_others_alone",
    "start_helpers",
]
