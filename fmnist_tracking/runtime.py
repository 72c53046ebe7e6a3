"""Process settings that only take effect before TensorFlow is imported.

They are applied when the package is imported, because that is the one moment which is
certain to come before any module of it imports TensorFlow. Each is a default: a variable
that is already set in the environment wins.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

DEFAULTS = {
    "KERAS_BACKEND": "tensorflow",
    # Off by default on processors without AVX-512, where it makes the gradients of the
    # convolutions about 2.5 times as fast.
    "TF_ENABLE_ONEDNN_OPTS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    # Several worker processes can share one GPU only if none takes all of its memory.
    "TF_FORCE_GPU_ALLOW_GROWTH": "true",
}


def apply_defaults() -> None:
    """Set each of `DEFAULTS` that the environment does not set already."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux: a container may be given some of them only
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
    import tensorflow as tf

    if tf.config.list_logical_devices("GPU"):
        return 1
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
