"""Settings of the process that runs TensorFlow: all in one place, and each can be overridden.

They change how fast a training is; what it computes differs only in the last digits. They are set
in processes that are this program's own: the command line, and the workers. A process that calls
the package's functions is left as it is. Each is a default: a variable that is already set in the
environment wins.

- `TF_ENABLE_ONEDNN_OPTS`: use Intel's library of convolutions and matrix products.
- `TF_FORCE_GPU_ALLOW_GROWTH`: allocate a GPU's memory as needed, so that workers can share a GPU.
- `FMNIST_THREADS`: threads of each worker; by default, the workers share the cores equally. A
  worker runs as many operations at once, each on one thread: the training step gives each thread a
  part of the batch (of at least four images: a batch of 32 keeps at most eight threads busy). That
  is up to twice as fast as running each operation on all threads.
- `FMNIST_STORE_PATIENCE`: how many seconds to wait, after training, for a store that does not
  answer.
- `FMNIST_JIT_COMPILE`: 1 makes XLA compile the training step, 0 does not. By default, it is not
  compiled on a processor, where compiling makes it many times slower; on a GPU, both ways are timed
  for each network.

- `MLFLOW_DISABLE_TELEMETRY`: true keeps MLflow from telling its makers how it is used.

`own_process` also undoes settings that notebooks, shells and other programs left for themselves.

Keras's `steps_per_execution` is not used: a whole epoch is one call of TensorFlow. For the same
reason, Keras's backend cannot be chosen.
"""

import contextlib
import gc
import importlib
import math
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from fmnist_tracking import machine
from fmnist_tracking.errors import ConfigError, OutputError
from fmnist_tracking.logs import log_plainly

DEFAULTS = {
    # Off by default on processors without AVX-512, where it makes the gradients of the convolutions
    # about 2.5 times as fast.
    "TF_ENABLE_ONEDNN_OPTS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "TF_FORCE_GPU_ALLOW_GROWTH": "true",
}
# Settings that other programs leave in the environment, and that would stop us or change numbers: a
# notebook's backend of Matplotlib, the float type in a person's keras.json, and so on.
_OURS = {
    "KERAS_BACKEND": "tensorflow",
    "MPLBACKEND": "agg",
    "KERAS_HOME": os.devnull,  # not a folder: no keras.json is read or written
    "PYTHONSAFEPATH": "1",  # a file random.py in the working folder must not replace Python's
}
# MLflow reports to its makers how it is used, unless it is told not to before it is imported.
_PRIVATE = {"MLFLOW_DISABLE_TELEMETRY": "true"}
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
# Variables that name folders: for unfinished searches, and for downloaded and split images.
STATE_VARIABLE = "FMNIST_STATE_DIR"
CACHE_VARIABLE = "FMNIST_CACHE_DIR"
THREADS_VARIABLE = "FMNIST_THREADS"
COMPILE_VARIABLE = "FMNIST_JIT_COMPILE"
STORE_PATIENCE_VARIABLE = "FMNIST_STORE_PATIENCE"
_STORE_PATIENCE_SECONDS = 300.0
_is_own = False  # whether `own_process` was called


def own_process() -> None:
    """Set the environment of a process that is this program's own, for it and those it starts.

    Keras's backend and each of `DEFAULTS` that is not set are set; settings that are meant for
    other programs are undone. Call it before TensorFlow, Keras and Matplotlib are imported.
    """
    global _is_own
    _is_own = True
    os.environ.update(_OURS)
    for name, value in {**DEFAULTS, **_PRIVATE}.items():
        os.environ.setdefault(name, value)
    for name in _OTHERS:
        os.environ.pop(name, None)
    if sys.warnoptions:  # restore Python's default filters
        sys.warnoptions.clear()
        warnings.resetwarnings()
        for category in (
            DeprecationWarning,
            PendingDeprecationWarning,
            ImportWarning,
            ResourceWarning,
        ):
            warnings.simplefilter("ignore", category)


def another_process() -> None:
    """Take back that this process is this program's own: it was forked from one that is."""
    global _is_own
    _is_own = False


def require_tensorflow_backend() -> None:
    """Raise `ConfigError` if KERAS_BACKEND has Keras compute with something else."""
    backend = os.environ.get("KERAS_BACKEND") or "tensorflow"
    if backend != "tensorflow":
        raise ConfigError(
            f"Expected KERAS_BACKEND to be tensorflow, with which trials are trained, got "
            f"{backend!r}. Set it before Keras is imported."
        )


def settings() -> dict[str, str | None]:
    """Return the variables that workers train with, by name; None for one that is not set."""
    names = ("KERAS_BACKEND", *DEFAULTS, THREADS_VARIABLE, COMPILE_VARIABLE)
    ours = {**DEFAULTS, **os.environ, **_OURS}
    return {name: ours.get(name) for name in names}


def threads_of(workers: int) -> int:
    """Return the number of threads for each of `workers` worker processes.

    Raises:
        ConfigError: FMNIST_THREADS is not a number of threads.
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
    """Return whether FMNIST_JIT_COMPILE makes XLA compile the training step, None if not set.

    Raises:
        ConfigError: the value is neither 0 nor 1.
    """
    text = os.environ.get(COMPILE_VARIABLE)
    if text not in (None, "", "0", "1"):
        raise ConfigError(f"Expected {COMPILE_VARIABLE} to be 0 or 1, got {text!r}.")
    return text == "1" if text else None


def jit_compile() -> bool | None:
    """Return whether XLA compiles the training step; None if both ways have to be timed."""
    asked = asked_to_compile()
    return asked if asked is not None or has_gpu() else False


def gpus() -> list[Any]:
    """Return the GPUs that TensorFlow finds, as its physical devices; compute on none of them."""
    tf = import_tensorflow()
    with _native_stderr_held_back():  # where a driver without a device is told of
        found: list[Any] = tf.config.list_physical_devices("GPU")
    return found


def has_gpu() -> bool:
    """Return whether TensorFlow computes on a GPU; it loads TensorFlow."""
    tf = import_tensorflow()
    return bool(tf.config.list_logical_devices("GPU"))


def import_tensorflow() -> Any:
    """Import TensorFlow without its start-up messages, start nothing, and return the module.

    TensorFlow 2.21 writes the messages directly to the process's standard error, before its own log
    level takes effect, and so through our progress display. They are shown only if the import
    fails.
    """
    is_there = "tensorflow" in sys.modules
    with contextlib.nullcontext() if is_there else _native_stderr_held_back():
        import tensorflow as tf
    return tf


def load_tensorflow(threads: int | None = None, worker: int | None = None) -> None:
    """Import TensorFlow and have it find its devices, without its start-up messages.

    Args:
        threads: for a training in this process: so many operations run at once, each on one thread,
            as the training step needs it. None keeps TensorFlow's default, which splits each
            operation over all cores.
        worker: number of this process among those that train at once, from 0; each gets one of the
            GPUs, if there are any. None leaves all of them to this process.

    Raises:
        ConfigError: TensorFlow does not execute eagerly here.
    """
    tf, found = import_tensorflow(), gpus()
    if not tf.executing_eagerly():
        raise ConfigError(
            "Expected TensorFlow to execute eagerly, as it does by default, got a program or block "
            "in which it does not. Call this outside of a tf.Graph, and leave out "
            "tf.compat.v1.disable_eager_execution()."
        )
    with _native_stderr_held_back():
        if threads is not None:
            tf.config.threading.set_intra_op_parallelism_threads(1)
            tf.config.threading.set_inter_op_parallelism_threads(threads)
        if found and worker is not None:
            tf.config.set_visible_devices([found[worker % len(found)]], "GPU")
        tf.config.list_logical_devices()


def prepare_process(threads: int, worker: int, modules: Sequence[str]) -> None:
    """Prepare a worker process for training or prediction; see `load_tensorflow`.

    The modules are imported now, so that the first task starts at once.
    """
    own_process()
    log_plainly()
    gc.disable()  # during the imports nothing becomes garbage
    import_tensorflow().get_logger().setLevel("ERROR")
    load_tensorflow(threads, worker)
    for module in modules:
        importlib.import_module(module)
    # What is loaded now stays; searching it for garbage would take a third of a second a trial.
    gc.freeze()
    gc.enable()


def shards() -> int:
    """Return the number of shards of a batch that this process computes at once; 1 on a GPU."""
    return 1 if has_gpu() else threads()


def threads() -> int:
    """Return the number of threads of a training in this process; it loads TensorFlow."""
    tf = import_tensorflow()
    return tf.config.threading.get_inter_op_parallelism_threads() or machine.cores()


def temporary_folder() -> str:
    """Return the folder for temporary files; raise `OutputError` if none is writable."""
    try:
        return tempfile.gettempdir()
    except FileNotFoundError as error:
        raise OutputError(
            f"{error.strerror}. Set TMPDIR to a folder that can be written."
        ) from None


@contextlib.contextmanager
def _native_stderr_held_back() -> Iterator[None]:
    if not _is_own:  # in another's program, other threads may be writing there
        yield
        return
    with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or none
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


def require_dates() -> None:
    """Raise `ConfigError` if the clock gives a time that no ZIP file has, as models are."""
    year = time.localtime().tm_year
    if not 1980 <= year < 2107:
        raise ConfigError(
            f"Expected the system's clock to give a year from 1980 to 2106, as the files of models "
            f"can hold, got {year}. Set the clock, and give this command again."
        )


def store_patience() -> float:
    """Return for how many seconds to wait, after training, for a store that does not answer."""
    return seconds_of(STORE_PATIENCE_VARIABLE, _STORE_PATIENCE_SECONDS)


def seconds_of(variable: str, default: float) -> float:
    """Return the seconds that a variable says; raise `ConfigError` if it is no such number."""
    text = os.environ.get(variable) or str(default)
    with contextlib.suppress(ValueError):
        seconds = float(text)
        if 0 <= seconds < math.inf:
            return seconds
    raise ConfigError(f"Expected {variable} to be a number of seconds, got {text!r}.")
