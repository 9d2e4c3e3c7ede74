"""Which example stands in which place of which batch, as a pure function of (seed, step).

    epoch, index = order.place(step, row, one_pass)

- plain: shuffled epochs of all examples, laid end to end.
- mixed: groups of examples take turns by their shares; each is endless and shuffled by itself.
- bucketed: groups of examples of about one length take turns by whole batches.
- sized: the examples of any of these, at one of some sizes, which whole batches share.

One pass takes each example once, unshuffled. That over groups takes one after another, and fills
the last batch of each with padding, so that no batch holds examples of two.
"""

import functools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from research.arguments import InputError

PERIOD = 10_000  # the most turns after which a mix begins anew: weights of four digits are exact


class Order(NamedTuple):
    """The order of the examples of a source; what it is made of pickles."""

    place: Callable[[int, int, bool], tuple[int, int]]  # epoch, index; epoch 1 of a pass is padding
    num_batches: int  # of one pass
    bucket: Callable[[int, bool], int] | None = None  # (step, one_pass) -> the group of a batch


class Groups(NamedTuple):
    """Examples in groups: group g holds sizes[g] of the `members`, behind those before it."""

    members: Sequence[int]
    sizes: tuple[int, ...]
    batch: int
    seed: int

    def drawn(self, group: int, number: int) -> tuple[int, int]:
        """Returns epoch and index of example `number` of the endless, shuffled group."""
        epoch, at = divmod(number, self.sizes[group])
        at = int(shuffled(self.sizes[group], self.seed, epoch, 0, 2, group)[at])
        return epoch, int(self.members[sum(self.sizes[:group]) + at])

    def passed(self, step: int, row: int) -> tuple[int, int]:
        """Returns epoch and index of a place in one pass."""
        for group, size in enumerate(self.sizes):
            if step < (batches := self.batches()[group]):
                at = step * self.batch + row
                return (0, int(self.members[sum(self.sizes[:group]) + at])) if at < size else (1, 0)
            step -= batches
        return 1, 0

    def batches(self) -> list[int]:
        """Returns how many batches of one pass each group has."""
        return [-(-size // self.batch) for size in self.sizes]


def plain(num_rows: int, batch: int, seed: int, shuffle: bool) -> Order:
    """Returns the order of one group of examples."""
    place = functools.partial(_plain, num_rows, batch, seed if shuffle else None)
    return Order(place, -(-num_rows // batch))


def _plain(
    num_rows: int, batch: int, seed: int | None, step: int, row: int, one_pass: bool
) -> tuple[int, int]:
    epoch, index = divmod(step * batch + row, num_rows)
    if seed is not None and not one_pass:
        index = int(shuffled(num_rows, seed, epoch)[index])
    return epoch, index


def shuffled(num_rows: int, seed: int, epoch: int, *key: int) -> np.ndarray:
    """Returns the order of `num_rows` in an epoch, kept while it is in use: 8 bytes a row. The
    `key` tells orders of one seed apart."""
    # Not grain's index_shuffle: in 0.2.18 it never returns for some seeds if there are few rows.
    return _shuffler(num_rows, seed, *key)(epoch)


@functools.lru_cache(maxsize=256)
def _shuffler(num_rows: int, seed: int, *key: int) -> Callable[[int], np.ndarray]:
    """Two epochs of each group are kept, as a batch may see the end of one and begin the next."""
    return functools.lru_cache(maxsize=2)(
        lambda epoch: np.random.default_rng((seed, epoch, *key)).permutation(num_rows)
    )


def mixed(sizes: tuple[int, ...], shares: tuple[int, ...], batch: int, seed: int) -> Order:
    """Returns the order of groups that lie one behind another and take turns by whole `shares`."""
    groups = Groups(range(sum(sizes)), sizes, batch, seed)
    return Order(functools.partial(_mixed, groups, shares), sum(groups.batches()))


def _mixed(
    groups: Groups, shares: tuple[int, ...], step: int, row: int, one_pass: bool
) -> tuple[int, int]:
    if one_pass:
        return groups.passed(step, row)
    group_of, before = turns(shares)
    period, turn = divmod(step * groups.batch + row, len(group_of))
    group = int(group_of[turn])
    return groups.drawn(group, period * shares[group] + int(before[turn]))


def whole_shares(weights: Sequence[float]) -> tuple[int, ...]:
    """Returns positive numbers in the ratio of `weights`: exactly, where their sum is at most
    PERIOD, else to 1 of PERIOD."""
    fractions = [Fraction(str(weight)) for weight in weights]
    parts = [fraction / sum(fractions) for fraction in fractions]
    period = math.lcm(*(part.denominator for part in parts))
    if period <= PERIOD:
        return tuple(int(part * period) for part in parts)
    return tuple(max(1, round(part * PERIOD)) for part in parts)


@functools.lru_cache(maxsize=8)
def turns(shares: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Returns whose turn each is, of a period of sum(shares), and how many turns of its own came
    before. After n turns of any number a group has had less than one more or less than its share
    of n: turn j of a share of s lies within [floor(j / s), ceil((j + 1) / s)), and the one whose
    window closes first goes first (Pfair scheduling, Baruah et al. 1996)."""
    period, share = sum(shares), np.array(shares, np.int64)
    done = np.zeros_like(share)
    group_of, before = np.empty(period, np.int64), np.empty(period, np.int64)
    for turn in range(period):
        opens, closes = done * period // share, -(-(done + 1) * period // share)
        group = np.argmin(np.where(opens <= turn, closes, period + 1))
        group_of[turn], before[turn] = group, done[group]
        done[group] += 1
    return group_of, before


def refuse_longer(
    lengths: np.ndarray,
    name: Callable[[int], str],
    room: int,
    buckets: tuple[int, ...],
    cut: bool | None,
) -> None:
    """Raises InputError for the first example that is longer than `room`, by its name, unless such
    ones are to be cut (None: without buckets only)."""
    cut = not buckets if cut is None else cut
    for index in [] if cut else np.flatnonzero(lengths > room)[:1].tolist():
        raise InputError(
            f"{name(index)} has {lengths[index]} tokens, and {room} have room; raise "
            "config.data.context, or have longer texts cut by config.data.cut=True"
        )


def by_length(
    lengths: np.ndarray, context: int, buckets: tuple[int, ...], batch: int, seed: int
) -> Order | None:
    """Returns the order of examples of some `lengths` whose batches are each of one bucket, the
    smallest that holds it, of the last one what is cut at `context` too; None without buckets.

    After e epochs a bucket of n examples has given e * n // batch batches, and those of an epoch
    come in an order of their own. So what does not fill a batch waits for the next epoch: a batch
    with few examples and much padding would weigh each of those few more.

    Raises InputError for buckets that do not rise to `context`.
    """
    if not buckets:
        return None
    whole = all(type(bucket) is int and bucket > 0 for bucket in buckets)
    if not whole or list(buckets) != sorted(set(buckets)) or buckets[-1] != context:
        raise InputError(
            f"config.data.buckets={buckets} must be lengths that rise to the context of {context}"
        )
    bucket_of = np.searchsorted(buckets, np.minimum(lengths, context))
    sizes = tuple(np.bincount(bucket_of, minlength=len(buckets)).tolist())
    groups = Groups(np.argsort(bucket_of, kind="stable"), sizes, batch, seed)
    place, bucket = functools.partial(_bucketed, groups), functools.partial(_bucket, groups)
    return Order(place, sum(groups.batches()), bucket)


def _bucketed(groups: Groups, step: int, row: int, one_pass: bool) -> tuple[int, int]:
    if one_pass:
        return groups.passed(step, row)
    group, number = _batch(groups.sizes, groups.batch, groups.seed, step)
    return groups.drawn(group, number * groups.batch + row)


def _bucket(groups: Groups, step: int, one_pass: bool) -> int:
    if one_pass:
        return int(np.searchsorted(np.cumsum(groups.batches()), step, "right"))
    return _batch(groups.sizes, groups.batch, groups.seed, step)[0]


def _batch(sizes: tuple[int, ...], batch: int, seed: int, step: int) -> tuple[int, int]:
    """Returns the group that the batch after `step` steps is of, and its number there."""
    epoch = step * batch // sum(sizes)
    while sum(_given(sizes, batch, epoch + 1)) <= step:  # as some examples wait
        epoch += 1
    group_of, number = _batches(sizes, batch, seed, epoch)
    at = step - sum(_given(sizes, batch, epoch))
    return int(group_of[at]), int(number[at])


def _given(sizes: tuple[int, ...], batch: int, epochs: int) -> list[int]:
    return [epochs * size // batch for size in sizes]


@functools.lru_cache(maxsize=4)
def _batches(
    sizes: tuple[int, ...], batch: int, seed: int, epoch: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns group and number of the batches of an epoch, in its order."""
    begin, end = _given(sizes, batch, epoch), _given(sizes, batch, epoch + 1)
    spans = [np.arange(*span) for span in zip(begin, end, strict=True)]
    group_of = np.repeat(np.arange(len(sizes)), [len(span) for span in spans])
    order = np.random.default_rng((seed, epoch, 0, 3)).permutation(len(group_of))
    return group_of[order], np.concatenate(spans)[order]


def sized(
    order: Order, scales: tuple, progressive: tuple, size: int, seed: int
) -> tuple[Order, tuple[int, ...]]:
    """Returns an order whose buckets are sizes, and those, rising: of `scales` each batch has one,
    drawn evenly; or by `progressive`, pairs of a step and the size from that step on (progressive
    resizing: arXiv:2104.00298). One pass is all of `size`.

    Raises InputError for both at once, sizes that are none, and steps that do not rise from 0.
    """
    if scales and progressive:
        raise InputError("config.data.scales and config.data.progressive are both set; keep one")
    sizes = list(scales)
    if progressive:
        pairs = all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in progressive)
        starts = [pair[0] for pair in progressive] if pairs else []
        sizes = [pair[1] for pair in progressive] if pairs else []
        whole = all(type(start) is int for start in starts)
        if not starts or not whole or starts[0] != 0 or starts != sorted(set(starts)):
            raise InputError(
                f"config.data.progressive={progressive} must be pairs of a step and a size, whose "
                "steps rise from 0"
            )
    if not all(type(size) is int and size > 0 for size in sizes):
        name, value = ("progressive", progressive) if progressive else ("scales", scales)
        raise InputError(f"config.data.{name}={value} must hold sizes in whole pixels")
    rising = tuple(sorted({*sizes, size}))
    if progressive:
        stages = tuple(map(rising.index, sizes))
        bucket = functools.partial(_stage, tuple(starts), stages, rising.index(size))
    else:
        drawn = tuple(map(rising.index, sorted(set(sizes))))
        bucket = functools.partial(_scale, drawn, rising.index(size), seed)
    return order._replace(bucket=bucket), rising


def _scale(drawn: tuple[int, ...], own: int, seed: int, step: int, one_pass: bool) -> int:
    place = np.random.default_rng((seed, step, 0, 4)).integers(len(drawn))
    return own if one_pass else drawn[place]


def _stage(
    starts: tuple[int, ...], stages: tuple[int, ...], own: int, step: int, one_pass: bool
) -> int:
    return own if one_pass else stages[int(np.searchsorted(starts, step, "right")) - 1]
