"""Evaluation protocols: masked items, relevant items, choice of the epoch.

Published numbers are comparable only under the same protocol, so a protocol is one named value:

  strict   mask train (and valid at test); any held-out item is relevant; binary nDCG
  mmrec    mask train only; AP over min(relevant, cutoff); selection on values rounded to 4 decimals
  elliot   mask train only; relevant means rating >= threshold; graded nDCG, gain 2^(r - t + 1) - 1;
           items without train interactions do not exist

All choose on the validation split and read the test split once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from mmjax.core.errors import InputError
from mmjax.core.unique import distinct


@dataclass(frozen=True)
class Protocol:
    name: str
    mask_valid_at_test: bool
    graded: bool = False
    cold_items: bool = True  # items without train interactions are candidates
    map_capped: bool = False
    round_selection: int | None = None
    threshold: float = 0.0


PRESETS = {
    "strict": Protocol("strict", mask_valid_at_test=True),
    "mmrec": Protocol("mmrec", mask_valid_at_test=False, map_capped=True, round_selection=4),
    "elliot": Protocol("elliot", mask_valid_at_test=False, graded=True, cold_items=False),
}


def find(name: str, threshold: float = 0.0) -> Protocol:
    """Return a preset with its relevance threshold.

    A threshold of 0 makes every held-out item relevant.

    Raises:
      InputError: no such preset.
    """
    if name not in PRESETS:
        raise InputError(f"no protocol {name!r}; there are {', '.join(PRESETS)}")
    return replace(PRESETS[name], threshold=threshold)


class Rows(NamedTuple):
    """Items by user, in CSR form.

    Items of row n are `item[start[n]:start[n + 1]]`, ascending.
    """

    start: np.ndarray  # [N + 1] int32
    item: np.ndarray  # [E] int32


class Task(NamedTuple):
    """Ranking task of one split: users, masked and relevant items.

    N users, K the longest cutoff.
    """

    users: np.ndarray  # [N] int32, users with a relevant item
    seen: Rows  # masked items of each
    target: Rows  # relevant items of each
    gain: np.ndarray  # [number of targets] float32, of the items in target.item
    ideal: np.ndarray  # [N, K] float32, gains in falling order
    relevant: np.ndarray  # [N] float32
    outside: np.ndarray | None  # [I] bool, items that are no user's candidates


Pairs = tuple[np.ndarray, np.ndarray]  # user, item


def build(
    protocol: Protocol,
    *,
    held_out: Pairs,
    rating: np.ndarray,
    masked: Sequence[Pairs],
    n_items: int,
    longest: int,
) -> Task:
    """Build the ranking task of one split.

    Args:
      held_out: users and items of the split; `rating` are their ratings.
      masked: users and items that are no candidates: train, then whatever else is seen.
      longest: the largest cutoff, K.

    Raises:
      InputError: no item is relevant, or a relevant item of a user is masked for that user.
    """
    keep, outside = rating >= protocol.threshold, None
    if not protocol.cold_items:
        outside = ~np.isin(np.arange(n_items), masked[0][1])
        keep &= ~outside[held_out[1]]
    user, item = (x[keep].astype(np.int64) for x in held_out)
    if len(user) == 0:
        raise InputError(f"no held-out item has a rating >= {protocol.threshold:g}")
    order = np.lexsort((item, user))
    user, item = user[order], item[order]
    # Threshold 0 means "all relevant", and then Elliot's exponent is the rating plus one.
    exponent = rating[keep][order].astype(np.float64) - protocol.threshold + 1
    gain = 2**exponent - 1 if protocol.graded else np.ones(len(user))
    users, first, counts = np.unique(user, return_index=True, return_counts=True)
    starts = np.append(first, len(user)).astype(np.int32)
    seen_user, seen_item = (np.concatenate(x).astype(np.int64) for x in zip(*masked, strict=True))
    pairs = distinct(seen_user * n_items + seen_item)
    clash = np.isin(user * n_items + item, pairs)
    if clash.any():
        u, i = user[clash][0], item[clash][0]
        raise InputError(
            f"{clash.sum()} held-out interactions are also masked, first user {u} item {i}: the "
            "splits overlap; prepare the dataset again without duplicates"
        )
    seen_user, seen_item = np.divmod(pairs, n_items)
    wanted = np.isin(seen_user, users)
    row = np.searchsorted(users, seen_user[wanted])
    seen_starts = np.searchsorted(row, np.arange(len(users) + 1)).astype(np.int32)
    rank = np.arange(len(user)) - np.repeat(first, counts)
    by_gain = np.lexsort((-gain, np.repeat(np.arange(len(users)), counts)))
    ideal = np.zeros((len(users), longest), np.float32)
    inside = rank < longest
    ideal[np.repeat(np.arange(len(users)), counts)[inside], rank[inside]] = gain[by_gain][inside]
    return Task(
        users=users.astype(np.int32),
        seen=Rows(seen_starts, seen_item[wanted].astype(np.int32)),
        target=Rows(starts, item.astype(np.int32)),
        gain=gain.astype(np.float32),
        ideal=ideal,
        relevant=counts.astype(np.float32),
        outside=outside,
    )


Tasks = dict[str, Task]  # by split
