"""Settings of the process that TensorFlow computes in: all in one place, each can be overridden.

They change how fast a training is, not what it computes, but for the last digits. What is read from
the environment before TensorFlow is imported is set when the package is imported, because that is
the one moment which is certain to come before any module of it imports TensorFlow. Each is a
default: a variable that is already set in the environment wins.

- `TF_ENABLE_ONEDNN_OPTS`: Intel's library of convolutions and matrix products.
- `TF_FORCE_GPU_ALLOW_GROWTH`: take a GPU's memory as it is needed, so that workers can share one.
- `FMNIST_THREADS`: of each worker; unset, the cores are shared out among the workers. So many
  operations are computed at once, each on one thread: `step` gives each thread a part of the batch,
  which is up to twice as fast as to give each operation all threads.
- `FMNIST_JIT_COMPILE`: 1 has XLA compile the training step, 0 does not. Unset, it is not compiled
  on a processor, where that makes it many times as slow; on a GPU, each network is tried both ways.

Keras's `steps_per_execution` has no place here: a whole epoch is one call of TensorFlow.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fmnist_tracking.errors import ConfigError

DEFAULTS = {
    "KERAS_BACKEND": "tensorflow",
    # Off by default on processors without AVX-512, where it makes the gradients of the
    # convolutions about 2.5 times as fast.
    "TF_ENABLE_ONEDNN_OPTS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "TF_FORCE_GPU_ALLOW_GROWTH": "true",
}
THREADS_VARIABLE = "FMNIST_THREADS"
COMPILE_VARIABLE = "FMNIST_JIT_COMPILE"


def apply_defaults() -> None:
    """Set each of `DEFAULTS` that the environment does not set already."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)


def settings() -> dict[str, str | None]:
    """What the environment says, by the variable's name; None where it says nothing."""
    return {n: os.environ.get(n) for n in (*DEFAULTS, THREADS_VARIABLE, COMPILE_VARIABLE)}


def threads_of(workers: int) -> int:
    """Threads of each of so many workers.

    Raises:
        ConfigError: the environment names no number of threads.
    """
    text = os.environ.get(THREADS_VARIABLE)
    if not text:
        return max(1, cores() // workers)
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ConfigError(
            f"Expected {THREADS_VARIABLE} to be a whole number of at least 1, got {text!r}."
        )
    return int(text)


def asked_to_compile() -> bool | None:
    """Whether XLA is asked to compile the training step; None if nothing is asked.

    Raises:
        ConfigError: the environment says neither yes nor no.
    """
    text = os.environ.get(COMPILE_VARIABLE)
    if text not in (None, "", "0", "1"):
        raise ConfigError(f"Expected {COMPILE_VARIABLE} to be 0 or 1, got {text!r}.")
    return text == "1" if text else None


def jit_compile() -> bool | None:
    """Whether XLA is to compile the training step; None to find out what is faster."""
    asked = asked_to_compile()
    return asked if asked is not None or has_gpu() else False


def has_gpu() -> bool:
    """Whether TensorFlow, once it is loaded, computes on a GPU."""
    import tensorflow as tf

    return bool(tf.config.list_logical_devices("GPU"))


def cores() -> int:
    """Processor cores that this process may use, in a container too."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        allowed = len(os.sched_getaffinity(0))
    else:
        allowed = os.cpu_count() or 1
    quota, _, period = _control_group("cpu.max").partition(" ")
    if quota.isdigit() and period.isdigit():
        allowed = min(allowed, max(1, int(quota) // int(period)))
    return allowed


def memory() -> int:
    """Memory in bytes that this machine, or the container, has in all."""
    import psutil

    limit = _control_group("memory.max")
    total = psutil.virtual_memory().total
    return min(total, int(limit)) if limit.isdigit() else total


def gpus() -> int:
    """NVIDIA's GPUs of this machine, found out without loading TensorFlow."""
    try:
        return len(list(Path("/proc/driver/nvidia/gpus").iterdir()))
    except OSError:
        return 0


def _control_group(name: str) -> str:
    """What Linux limits the container to; nothing where it does not, or there is none."""
    try:
        return Path("/sys/fs/cgroup", name).read_text().strip()
    except OSError:
        return ""


def import_tensorflow() -> None:
    """Import TensorFlow without its start-up notices, and begin nothing with it.

    TensorFlow 2.21 writes the notices straight to the process's standard error before its
    own log level takes effect, through the middle of our progress display. They are shown
    only if the import fails.
    """
    with _native_stderr_held_back():
        import tensorflow as tf
    tf.get_logger().setLevel("ERROR")


def load_tensorflow(threads: int | None = None, worker: int = 0) -> None:
    """Import TensorFlow and make it ready to compute, without its start-up notices.

    Args:
        threads: for the training of one process: so many operations at once, each on one
            thread, which `step` makes use of. None leaves it to TensorFlow, which splits each
            operation up for all cores.
        worker: number of the process among those that train at once, 0 for the first; each
            gets one of the GPUs, if there are any.
    """
    import_tensorflow()
    import tensorflow as tf

    with _native_stderr_held_back():
        if threads is not None:
            tf.config.threading.set_intra_op_parallelism_threads(1)
            tf.config.threading.set_inter_op_parallelism_threads(threads)
        gpus = tf.config.list_physical_devices("GPU")
        if gpus:
            tf.config.set_visible_devices([gpus[worker % len(gpus)]], "GPU")
        tf.config.list_logical_devices()


def shards() -> int:
    """Parts of a batch that a training in this process computes at once; one on a GPU."""
    return 1 if has_gpu() else threads()


def threads() -> int:
    """Threads that a training in this process may use, once TensorFlow is loaded."""
    import tensorflow as tf

    return tf.config.threading.get_inter_op_parallelism_threads() or cores()


@contextmanager
def _native_stderr_held_back() -> Iterator[None]:
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held_back:
        os.dup2(held_back.fileno(), 2)
        try:
            yield
        except BaseException:
            held_back.seek(0)
            os.write(kept, held_back.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
