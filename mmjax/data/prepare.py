"""Turn a source's `Raw` into a `Dataset`.

The steps are: rating threshold, duplicates, k-core, split, cold users, numbering. Rows are sorted
by (user id, item id) before anything is drawn, so the result depends on the seed and on the
contents of the files, not on the order of their rows. One exception: where `last` and `first` have
no times to distinguish repeats, the order of the repeats decides.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mmjax.core.errors import InputError
from mmjax.data import splits
from mmjax.data.dataset import SPLITS, Dataset, Interactions
from mmjax.data.raw import Raw

DUPLICATES = ("last", "first", "max", "error")
WAYS = ("given", "random", "leave_last_out", "temporal", "temporal_global")
COLD_USERS = ("error", "drop", "keep")
KEEP_ITEMS = ("interacted", "all")


class Log(NamedTuple):
    """Interactions between the steps, sorted by user, then item."""

    user: np.ndarray  # [E] int32, positions in the sorted user ids
    item: np.ndarray  # [E] int32
    rating: np.ndarray  # [E] float32
    time: np.ndarray  # [E] int64
    split: np.ndarray  # [E] int8

    def take(self, rows: np.ndarray) -> "Log":
        return Log(*(column[rows] for column in self))


def prepare(
    raw: Raw,
    *,
    name: str,
    split: str | None = None,
    k_core: int = 0,
    min_rating: float | None = None,
    duplicates: str = "last",
    test: float = 0.2,
    valid: float = 0.1,
    seed: int = 0,
    cold_users: str = "error",
    keep_items: str = "interacted",
) -> Dataset:
    """Filter, split and number a source's interactions.

    Args:
      split: one of WAYS; None is `given` where the source brings a split, else `random`.
      k_core: users and items with fewer interactions are removed until none remain.
      min_rating: interactions rated lower are removed.
      duplicates: which interaction of a repeated (user, item) stays: the `last` or `first` by time,
        then by row, the one of `max` rating, or none (`error`). A pair in two given splits is an
        error too, except that `first` keeps the one of the earlier split.
      test: share of each user's interactions (of all, for `temporal_global`) held out for test.
      valid: share of the remaining ones held out for validation.
      cold_users: one of COLD_USERS, for users with held-out but without train interactions.
      keep_items: `interacted` leaves out items without interactions, `all` keeps the catalogue.

    Raises:
      InputError: an option is unknown or does not fit the data, a repeated pair or a cold user is
        not allowed, or nothing is left in a split.
    """
    split = split or ("random" if raw.split is None else "given")
    for option, value, allowed in (
        ("split", split, WAYS),
        ("duplicates", duplicates, DUPLICATES),
        ("cold_users", cold_users, COLD_USERS),
        ("keep_items", keep_items, KEEP_ITEMS),
    ):
        if value not in allowed:
            raise InputError(f"--{option}={value} is not one of {', '.join(allowed)}")
    for option, share in (("test_share", test), ("valid_share", valid)):
        if not 0 <= share < 1:
            raise InputError(f"--{option}={share} is not a share: it must be in [0, 1)")
    if split == "given" and raw.split is None:
        raise InputError("--split=given, but the source has no split; choose --split=random")
    if split.startswith(("temporal", "leave")) and not raw.time.any():
        raise InputError(f"--split={split} needs times, but the source has none")

    user_order, item_order = order_ids(raw.user_ids), order_ids(raw.item_ids)
    trail = {"read": len(raw.user)}
    log = _sorted(raw, user_order, item_order, given=split == "given")
    if min_rating is not None:
        log = log.take(log.rating >= min_rating)
        trail[f"rated {min_rating:g} or more"] = len(log.user)
    ids = (_Ids(raw.user_ids, user_order), _Ids(raw.item_ids, item_order))
    log = _merge(log, duplicates, ids)
    trail["without repeats"] = len(log.user)
    if k_core > 1:
        log = log.take(splits.k_core(log.user, log.item, k_core))
        trail[f"in the {k_core}-core"] = len(log.user)
    summary = ", ".join(f"{count:,} {step}" for step, count in trail.items())
    if not len(log.user):
        raise InputError(f"no interaction is left ({summary}); loosen the filters")
    log = log._replace(split=_label(log, split, seed, test, valid))
    if cold_users != "keep":
        log = _without_cold_users(log, cold_users, ids[0])
    for label, part in enumerate(SPLITS):
        required = (True, valid > 0, test > 0)[label] or split == "given"
        if required and not (log.split == label).any():
            raise InputError(
                f"the {part} split is empty ({summary}, split {split}); "
                "change the shares or loosen the filters"
            )
    made_by = {
        **raw.made_by,
        "split": split,
        "k_core": k_core,
        "min_rating": min_rating,
        "duplicates": duplicates,
        "test_share": test if split in ("random", "temporal", "temporal_global") else None,
        "valid_share": valid if split in ("random", "temporal", "temporal_global") else None,
        "split_seed": seed if split == "random" else None,
        "cold_users": cold_users,
        "keep_items": keep_items,
        "rows": {**trail, "split": len(log.user)},
    }
    return _number(raw, log, name, user_order, item_order, keep_items == "all", made_by)


def order_ids(ids: Sequence[str]) -> np.ndarray:
    """Return the positions of the ids in sorted order.

    The order is by number if all ids are decimal integers, else as text.
    """
    order = sorted(range(len(ids)), key=ids.__getitem__)
    if all(key.isascii() and key.isdigit() for key in ids):
        numbers = [int(key) for key in ids]
        order.sort(key=numbers.__getitem__)  # stable: 7 and 007 stay in text order
    return np.array(order, np.int64)


def feature_rows(raw: Raw, dataset: Dataset) -> np.ndarray:
    """Return each item's row [I] in the source's `features`.

    Items are in the dataset's order.
    """
    row_of = {key: row for row, key in enumerate(raw.item_ids)}
    return np.array([row_of[key] for key in dataset.item_ids], np.int64)


class _Ids(NamedTuple):
    """Ids by sorted position, for messages."""

    ids: Sequence[str]
    order: np.ndarray

    def __call__(self, position: int) -> str:
        return repr(self.ids[self.order[position]])


def _invert(order: np.ndarray) -> np.ndarray:
    position = np.empty(len(order), np.int32)
    position[order] = np.arange(len(order), dtype=np.int32)
    return position


def _pairs(log: Log) -> np.ndarray:
    """Pack each (user, item) pair into one int64.

    The pairs are in the order of the log.
    """
    return log.user.astype(np.int64) << 32 | log.item


def _sorted(raw: Raw, user_order: np.ndarray, item_order: np.ndarray, *, given: bool) -> Log:
    """Sort the rows by user, then item.

    Equal pairs are sorted by given split, time and row.
    """
    split = raw.split if given else np.zeros(len(raw.user), np.int8)
    assert split is not None
    log = Log(
        _invert(user_order)[raw.user], _invert(item_order)[raw.item], raw.rating, raw.time, split
    )
    keys = [column for column in (log.time, log.split) if column.any()]
    return log.take(np.lexsort((*keys, _pairs(log))))


def _merge(log: Log, policy: str, ids: tuple[_Ids, _Ids]) -> Log:
    """Keep one row per (user, item) pair."""
    if not len(log.user):
        return log
    pairs = _pairs(log)
    starts = np.flatnonzero(np.concatenate([[True], pairs[1:] != pairs[:-1]]))
    ends = np.append(starts[1:], len(pairs)) - 1
    if len(starts) == len(pairs):
        return log
    crossing = log.split[starts] != log.split[ends]
    if policy == "error" or (policy != "first" and crossing.any()):
        faulty = np.flatnonzero((starts != ends) if policy == "error" else crossing)
        row = starts[faulty[0]]
        example = f"user {ids[0](log.user[row])} and item {ids[1](log.item[row])}"
        if policy == "error":
            raise InputError(
                f"{len(faulty):,} (user, item) pairs repeat, {example} among them; "
                "remove the repeats or pass --duplicates=last"
            )
        raise InputError(
            f"{len(faulty):,} (user, item) pairs are in more than one split, {example} among them; "
            "remove one row or pass --duplicates=first to keep the earlier split's"
        )
    if policy == "max":
        best = np.maximum.reduceat(log.rating, starts)
        group = np.repeat(np.arange(len(starts)), ends - starts + 1)
        rows = np.flatnonzero(log.rating == best[group])
        ends = np.zeros(len(starts), np.int64)
        np.maximum.at(ends, group[rows], rows)  # the last of the best
    return log.take(starts if policy == "first" else ends)


def _label(log: Log, split: str, seed: int, test: float, valid: float) -> np.ndarray:
    if split == "random":
        return splits.random_per_user(log.user, seed, test, valid)
    if split == "leave_last_out":
        return splits.leave_last_out(log.user, log.time)
    if split == "temporal":
        return splits.temporal_per_user(log.user, log.time, test, valid)
    if split == "temporal_global":
        return splits.temporal_global(log.time, test, valid)
    return log.split


def _without_cold_users(log: Log, policy: str, name: _Ids) -> Log:
    trained = np.bincount(log.user[log.split == splits.TRAIN], minlength=len(name.ids)) > 0
    cold = ~trained[log.user]
    if not cold.any():
        return log
    if policy == "error":
        users = np.unique(log.user[cold])
        raise InputError(
            f"{len(users):,} users have held-out but no train interactions, user {name(users[0])} "
            f"among them; pass --cold_users=drop to leave them out (with their {cold.sum():,} "
            "interactions) or --cold_users=keep to keep them"
        )
    return log.take(~cold)


def _number(
    raw: Raw,
    log: Log,
    name: str,
    user_order: np.ndarray,
    item_order: np.ndarray,
    all_items: bool,
    made_by: dict[str, Any],
) -> Dataset:
    """Assign numbers to the remaining users and items in id order.

    The log is divided by split.
    """
    has_user = np.bincount(log.user, minlength=len(user_order)) > 0
    has_item = np.bincount(log.item, minlength=len(item_order)) > 0
    if all_items:
        has_item[:] = True
    user = (np.cumsum(has_user, dtype=np.int32) - 1)[log.user]
    item = (np.cumsum(has_item, dtype=np.int32) - 1)[log.item]
    items = item_order[has_item].tolist()

    def pick(values: Sequence[str]) -> list[str]:
        return [values[row] for row in items]

    def part(label: int) -> Interactions:
        rows = log.split == label
        return Interactions(user[rows], item[rows], log.rating[rows], log.time[rows])

    return Dataset(
        name=name,
        user_ids=[raw.user_ids[row] for row in user_order[has_user].tolist()],
        item_ids=pick(raw.item_ids),
        titles=pick(raw.titles),
        texts=pick(raw.texts),
        images=pick(raw.images),
        audios=pick(raw.audios),
        train=part(splits.TRAIN),
        valid=part(splits.VALID),
        test=part(splits.TEST),
        attributes={key: pick(values) for key, values in raw.attributes.items()},
        made_by=made_by,
    )
