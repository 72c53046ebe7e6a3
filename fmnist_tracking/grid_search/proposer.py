"""Asking for points that depend on results."""

from collections.abc import Mapping, Sequence
from functools import partial

from fmnist_tracking import runtime
from fmnist_tracking.errors import SearchError
from fmnist_tracking.network import Network, Value
from fmnist_tracking.search_space import Draw, Proposed
from fmnist_tracking.workers import LocalWorker, WorkerDied, WorkerPool

# In the worker, which imports TensorFlow for it.
_WORKER = "fmnist_tracking.grid_search.worker"
_PROPOSE = f"{_WORKER}:propose_points"


class Proposer:
    """Asks for points that depend on results, in a process that remembers what it has worked out.

    Use it as a context manager.

    Attributes:
        draw: how many points it asks for.
        ahead: how many may be without a result when another is asked for, and that one.
    """

    def __init__(
        self, network: Network, replaced: Mapping[str, tuple[Value, ...]], draw: Draw, ahead: int
    ) -> None:
        self._network, self._replaced = network, dict(replaced)
        self.draw, self.ahead = draw, ahead
        # One thread: trials want the other cores.
        prepare = partial(runtime.prepare_process, 1, 0, [_WORKER])
        self._pool = WorkerPool([LocalWorker(prepare)], lambda *_: None)

    def __enter__(self) -> "Proposer":
        self._pool.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *others: object) -> None:
        self._pool.__exit__(kind, *others)

    def points(self, scores: Sequence[float | None]) -> Proposed:
        """Return all points so far, given how the first of them came out; see `networks.proposals`.

        Raises:
            ConfigError: the network cannot be loaded, or none of its points be trained.
            SearchError: the process that works them out died twice.
        """
        asked = self._network, self._replaced, self.draw, self.ahead, tuple(scores)
        try:
            try:
                found: Proposed = self._pool.submit(_PROPOSE, *asked).result()
            except WorkerDied:  # another works all of them out again
                found = self._pool.submit(_PROPOSE, *asked).result()
        except WorkerDied as death:
            raise SearchError(
                f"No other point of {self._network.name} can be asked for: the process that works "
                f"it out {death.what} ({death}), twice. The same command goes on with the search."
            ) from None
        return found
