"""Splitting a batch into parts that are computed at once."""

import itertools

import tensorflow as tf


def shard_bounds(count: tf.Tensor, number: int) -> list[tuple[tf.Tensor, tf.Tensor]]:
    """Return start and end of `number` parts of `count` items; sizes differ by 1 at most."""
    bounds = [count * shard // number for shard in range(number + 1)]
    return list(itertools.pairwise(bounds))
