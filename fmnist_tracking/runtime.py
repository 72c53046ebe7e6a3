"""Settings of the process that TensorFlow computes in: all in one place, each can be overridden.

They change how fast a training is, not what it computes, but for the last digits. What is read from
the environment before TensorFlow is imported is set when the package is imported, because that is
the one moment which is certain to come before any module of it imports TensorFlow. Each is a
default: a variable that is already set in the environment wins.

- `TF_ENABLE_ONEDNN_OPTS`: Intel's library of convolutions and matrix products.
- `TF_FORCE_GPU_ALLOW_GROWTH`: take a GPU's memory as it is needed, so that workers can share one.
- `FMNIST_THREADS`: of each worker; unset, the cores are shared out among the workers. So many
  operations are computed at once, each on one thread: `step` gives each thread a part of the batch
  (of at least four images: a batch of 32 keeps eight threads busy at most), which is up to twice as
  fast as to give each operation all threads.
- `FMNIST_STORE_PATIENCE`: seconds for which, when all is trained, a store that does not answer is
  waited for.
- `FMNIST_JIT_COMPILE`: 1 has XLA compile the training step, 0 does not. Unset, it is not compiled
  on a processor, where that makes it many times as slow; on a GPU, each network is tried both ways.

What notebooks, shells and other programs set for themselves is kept out by `keep_others_out`.

Keras's `steps_per_execution` has no place here: a whole epoch is one call of TensorFlow. Nor can
Keras's backend be chosen, because that call is TensorFlow's.
"""

import contextlib
import gc
import importlib
import math
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence

from fmnist_tracking import machine
from fmnist_tracking.errors import ConfigError, OutputError

_BACKEND = "KERAS_BACKEND"
DEFAULTS = {
    # Off by default on processors without AVX-512, where it makes the gradients of the
    # convolutions about 2.5 times as fast.
    "TF_ENABLE_ONEDNN_OPTS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "TF_FORCE_GPU_ALLOW_GROWTH": "true",
}
# What notebooks, shells and other programs leave in the environment, and would stop us or change
# numbers: Matplotlib's backend of a notebook, the float type in a person's keras.json, and so on.
_OURS = {
    "MPLBACKEND": "agg",
    "KERAS_HOME": os.devnull,  # no folder: no keras.json is read there, and none is written
    "PYTHONSAFEPATH": "1",  # a file random.py in the working folder is not Python's
}
_OTHERS = (
    "KERAS_MAX_EPOCHS",
    "KERAS_MAX_STEPS_PER_EPOCH",
    "KERAS_NNX_ENABLED",
    "MLFLOW_LOGGING_LEVEL",
    "PYTHONWARNINGS",
    "TF2_BEHAVIOR",
    "TF_XLA_FLAGS",
    "TF_USE_LEGACY_KERAS",
)
# Of folders: what unfinished searches need, and fetched and decoded images.
STATE_VARIABLE = "FMNIST_STATE_DIR"
CACHE_VARIABLE = "FMNIST_CACHE_DIR"
THREADS_VARIABLE = "FMNIST_THREADS"
COMPILE_VARIABLE = "FMNIST_JIT_COMPILE"
STORE_PATIENCE_VARIABLE = "FMNIST_STORE_PATIENCE"
_STORE_PATIENCE_SECONDS = 300.0


def apply_defaults() -> None:
    """Set each of `DEFAULTS` that the environment does not set already, and Keras's backend."""
    os.environ[_BACKEND] = "tensorflow"
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)


def keep_others_out() -> None:
    """Keep settings that are meant for other programs out of this process and those it starts.

    For a process that is ours alone: the command line's. It must come before Keras and Matplotlib
    are imported.
    """
    os.environ.update(_OURS)
    for name in _OTHERS:
        os.environ.pop(name, None)
    if sys.warnoptions:  # as Python has it without any
        sys.warnoptions.clear()
        warnings.resetwarnings()
        for category in (
            DeprecationWarning,
            PendingDeprecationWarning,
            ImportWarning,
            ResourceWarning,
        ):
            warnings.simplefilter("ignore", category)


def settings() -> dict[str, str | None]:
    """What the environment says, by the variable's name; None where it says nothing."""
    names = (_BACKEND, *DEFAULTS, THREADS_VARIABLE, COMPILE_VARIABLE)
    return {name: os.environ.get(name) for name in names}


def threads_of(workers: int) -> int:
    """Threads of each of so many workers.

    Raises:
        ConfigError: the environment names no number of threads.
    """
    text = os.environ.get(THREADS_VARIABLE)
    if not text:
        return max(1, machine.cores() // workers)
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


def prepare_process(threads: int, worker: int, modules: Sequence[str]) -> None:
    """Make a process that is there for it ready to train, or to ask a model.

    Args:
        threads: for the training; see `load_tensorflow`.
        worker: number of the process; see `load_tensorflow`.
        modules: what else to import, so that the first task begins at once.
    """
    gc.disable()  # until all is imported: none of it is garbage
    load_tensorflow(threads, worker)
    for module in modules:
        importlib.import_module(module)
    # What is loaded by now stays; looking for garbage in it would take a third of a second a trial.
    gc.freeze()
    gc.enable()


def shards() -> int:
    """Parts of a batch that a training in this process computes at once; one on a GPU."""
    return 1 if has_gpu() else threads()


def threads() -> int:
    """Threads that a training in this process may use, once TensorFlow is loaded."""
    import tensorflow as tf

    return tf.config.threading.get_inter_op_parallelism_threads() or machine.cores()


def temporary_folder() -> str:
    """The folder for temporary files.

    Raises:
        OutputError: none can be written.
    """
    try:
        return tempfile.gettempdir()
    except FileNotFoundError as error:
        raise OutputError(
            f"{error.strerror}. Set TMPDIR to a folder that can be written."
        ) from None


@contextlib.contextmanager
def _native_stderr_held_back() -> Iterator[None]:
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile(dir=temporary_folder()) as held_back:
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


def store_patience() -> float:
    """Return for how many seconds, at the end, a store that does not answer is waited for.

    Raises:
        ConfigError: the environment gives no number of seconds.
    """
    text = os.environ.get(STORE_PATIENCE_VARIABLE, str(_STORE_PATIENCE_SECONDS))
    with contextlib.suppress(ValueError):
        seconds = float(text)
        if 0 <= seconds < math.inf:
            return seconds
    raise ConfigError(
        f"Expected {STORE_PATIENCE_VARIABLE} to be a number of seconds, got {text!r}."
    )
