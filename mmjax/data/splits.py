"""Filter interactions by k-core and split them.

All functions work on whole columns, without a loop over users.

A split is an array of labels [E] int8, one per interaction: 0 train, 1 valid, 2 test. Of n
interactions floor(n * (1 - share)) always stay, first for test and then, among those that stayed,
for valid: Elliot's `random_subsampling`, down to its floating-point product.
"""

import numpy as np

TRAIN, VALID, TEST = 0, 1, 2


def k_core(user: np.ndarray, item: np.ndarray, k: int) -> np.ndarray:
    """Return the mask of interactions in the k-core.

    The k-core is the largest subset in which every user and every item has at least k interactions.

    Args:
      user, item: [E] codes; a pair that repeats counts each time.

    Returns:
      [E] bool, true for the interactions that remain.
    """
    keep = np.ones(len(user), bool)
    remaining = np.arange(len(user))
    while len(remaining):
        users, items = user[remaining], item[remaining]
        stay = (np.bincount(users)[users] >= k) & (np.bincount(items)[items] >= k)
        if stay.all():
            break
        keep[remaining[~stay]] = False
        remaining = remaining[stay]
    return keep


def random_per_user(user: np.ndarray, seed: int, test: float, valid: float) -> np.ndarray:
    """Hold out a random share of each user's interactions.

    The labels are a function of the seed and of the row order.
    """
    draw = np.random.default_rng(seed).random(len(user))
    return _cut(*_rank(user, draw), test, valid)


def temporal_per_user(user: np.ndarray, time: np.ndarray, test: float, valid: float) -> np.ndarray:
    """Hold out each user's latest interactions.

    The latest are the test, those before them the validation. Equal times are taken in row order.
    """
    return _cut(*_rank(user, time), test, valid)


def leave_last_out(user: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Hold out each user's last two interactions.

    The last is the test, the one before it the validation. A user with two has no validation and a
    user with one only trains, so every user keeps a history. Equal times are taken in row order.
    """
    rank, count = _rank(user, time)
    labels = np.zeros(len(user), np.int8)
    labels[(rank == count - 2) & (count >= 3)] = VALID
    labels[(rank == count - 1) & (count >= 2)] = TEST
    return labels


def temporal_global(time: np.ndarray, test: float, valid: float) -> np.ndarray:
    """Split all users' interactions at two moments.

    The latest interactions are the test, those before them the validation. Interactions at the
    exact time of a cut all fall on its later side, so no split sees its own future; with many equal
    times the later splits are larger than their share.
    """
    labels = np.zeros(len(time), np.int8)
    ordered = np.sort(time)
    stay = _stay(len(time), test)
    train = _stay(stay, valid)
    if train < stay:
        labels[time >= ordered[train]] = VALID
    if stay < len(time):
        labels[time >= ordered[stay]] = TEST
    return labels


def _stay(count: np.ndarray | int, share: float) -> np.ndarray:
    return np.floor(np.asarray(count) * (1 - share)).astype(np.int64)


def _rank(user: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rank each user's rows by `order`.

    Returns:
      Each row's position [E] among its user's rows, and that user's row count [E].
    """
    rows = np.lexsort((order, user))
    counts = np.bincount(user)
    starts = np.cumsum(counts) - counts
    rank = np.empty(len(user), np.int64)
    rank[rows] = np.arange(len(user)) - starts[user[rows]]
    return rank, counts[user]


def _cut(rank: np.ndarray, count: np.ndarray, test: float, valid: float) -> np.ndarray:
    stay = _stay(count, test)
    train = _stay(stay, valid)
    return ((rank >= train).astype(np.int8) + (rank >= stay)).astype(np.int8)
