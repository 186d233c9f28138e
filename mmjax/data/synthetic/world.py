"""Generate a synthetic catalogue with known ground truth.

It is the embedded default dataset and the source of scale tests.

Items have hidden attributes. The picture shows all of them, the text states some. A user has a few
tastes. A taste is a category with a value of one other attribute ("striped bags"). A user interacts
mostly with items that match a taste, drawn by popularity, at times with a popular item, at times
with any item. So other users' histories help (tastes are shared) and so does content (rare items
that match a taste have few histories).

Every draw is vectorised, so a million items and ten million interactions take seconds. Each kind of
draw has its own random stream: pictures do not change the interactions, for example.
"""

from pathlib import Path

import numpy as np

from mmjax.core.errors import InputError
from mmjax.core.unique import distinct
from mmjax.data.raw import Raw
from mmjax.data.synthetic import drawing, wording

WORDS = {
    "category": tuple(drawing.SHAPES),
    "colour": tuple(drawing.RGB),
    "material": tuple(drawing.FINISHES),
    "pattern": tuple(drawing.PATTERNS),
    "style": tuple(drawing.WALLS),
}
TASTES = (0.6, 0.4)  # how often a user follows the first and the second taste
TASTE, POPULAR = 0.8, 0.1  # share of interactions that follow a taste, or only popularity
ZIPF = 0.6  # popularity of the r-th most popular item is r ** -ZIPF
FEWEST = 5  # minimum interactions of a user
START, SPAN = 1_600_000_000, 2 * 365 * 86_400  # seconds: first moment, and two years
ROUNDS = 8  # after so many, users who exhausted their tastes draw from all items
CHUNK = 1 << 20  # interactions rated at once


def generate(
    *,
    users: int = 2000,
    items: int = 1000,
    interactions: int = 30_000,
    seed: int = 0,
    images: Path | None = None,
    missing: float = 0.02,
) -> Raw:
    """Draw a synthetic dataset of users, items and interactions.

    Args:
      interactions: exact number of distinct (user, item) pairs. Users have at least 5 each if there
        are enough.
      images: folder that gets `images/<thousand>/<id>.jpg`. `Raw.images` holds these paths relative
        to the folder. None draws no pictures.
      missing: share of items without a picture, and of items without title and text.

    Raises:
      InputError: more interactions than half of all pairs or fewer than one per user, no user or
        item, or a share outside [0, 1].
    """
    if min(users, items) < 1 or not 0 <= missing <= 1:
        raise InputError("a world needs --users and --items of at least 1 and --missing in [0, 1]")
    if not users <= interactions <= users * (items // 2):
        raise InputError(
            f"--interactions={interactions} does not fit {users} users and {items} items: it must "
            f"be from {users} (one a user) to {users * (items // 2)} (half of the items a user)"
        )
    item_rng, taste_rng, log_rng, text_rng, missing_rng = (
        np.random.default_rng([seed, stream]) for stream in range(5)
    )
    values = {name: item_rng.integers(0, len(words), items) for name, words in WORDS.items()}
    popularity = (1.0 + item_rng.permutation(items)) ** -ZIPF
    tastes = _tastes(users, taste_rng)
    user, item = _interact(tastes, _Shelves(values, popularity), interactions, log_rng)
    match = _match(user, item, tastes, values)
    rating = np.clip(np.rint(2.6 + 1.7 * match + log_rng.normal(0, 0.8, interactions)), 1, 5)
    # Share of the span before the user's first appearance.
    begin = log_rng.uniform(0, 0.75, users)[user]
    time = START + (SPAN * (begin + (1 - begin) * log_rng.random(interactions))).astype(np.int64)

    names = list(map(str, range(items)))
    titles = wording.write_titles(values, WORDS, text_rng)
    texts = wording.write_texts(values, WORDS, text_rng)
    missing_count = round(missing * items)
    for index in missing_rng.permutation(items)[:missing_count].tolist():
        titles[index] = texts[index] = ""
    paths = [""] * items
    if images is not None:
        paths = [f"images/{number // 1000:03d}/{number}.jpg" for number in range(items)]
        for index in missing_rng.permutation(items)[:missing_count].tolist():
            paths[index] = ""
        drawing.write_pictures(values, WORDS, seed, images, paths)
    return Raw(
        user=user,
        item=item,
        rating=rating.astype(np.float32),
        time=time,
        split=None,
        user_ids=list(map(str, range(users))),
        item_ids=names,
        titles=titles,
        texts=texts,
        images=paths,
        audios=[""] * items,
        attributes={
            name: np.array(words, object)[values[name]].tolist() for name, words in WORDS.items()
        },
        made_by={"source": "world", "seed": seed, "missing": missing},
    )


class _Shelves:
    """Items grouped by category and one other attribute, for weighted draws.

    A group is one (category, value) pair of an attribute; one last attribute has all items in a
    single group. Group g of attribute k covers `bounds[k][g]` to `bounds[k][g + 1]` of `sums[k]`,
    the running sum of popularity along `orders[k]`. It turns one uniform number into an item of the
    group.
    """

    def __init__(self, values: dict[str, np.ndarray], popularity: np.ndarray):
        self.others = [name for name in WORDS if name != "category"]
        self.orders, self.sums, self.bounds = [], [], []
        group_codes = [values["category"] * len(WORDS[name]) + values[name] for name in self.others]
        group_codes.append(np.zeros(len(popularity), np.int64))  # one group with all items
        sizes = [len(WORDS["category"]) * len(WORDS[name]) for name in self.others] + [1]
        for codes, size in zip(group_codes, sizes, strict=True):
            order = np.argsort(codes, kind="stable").astype(np.int32)
            cumulative = np.concatenate([[0.0], np.cumsum(popularity[order])])
            edges = np.searchsorted(codes[order], np.arange(size + 1))
            self.orders.append(order)
            self.sums.append(cumulative)
            self.bounds.append(cumulative[edges])

    def draw(self, kind: int, groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draw one item from each of the given groups by popularity.

        Args:
          kind: index of the attribute in `others`; the last (-1) has one group with all items.
          groups: group codes [N].

        Returns:
          Item codes [N] int32, -1 where the group is empty.
        """
        low, high = self.bounds[kind][groups], self.bounds[kind][groups + 1]
        point = low + rng.random(len(groups)) * (high - low)
        position = np.searchsorted(self.sums[kind], point, side="right") - 1
        item = self.orders[kind][np.minimum(position, len(self.orders[kind]) - 1)]
        return np.where(high > low, item, -1).astype(np.int32)


def _tastes(users: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Draw each user's tastes as category, attribute and value codes.

    Each array is [U, tastes]. The attribute code is an index into `_Shelves.others`.
    """
    shape = (users, len(TASTES))
    sizes = np.array([len(words) for name, words in WORDS.items() if name != "category"])
    kind = rng.integers(0, len(sizes), shape)
    value = (rng.random(shape) * sizes[kind]).astype(np.int64)
    return rng.integers(0, len(WORDS["category"]), shape), kind, value


def _interact(
    tastes: tuple[np.ndarray, ...], shelves: _Shelves, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw exactly `count` distinct (user, item) pairs, sorted.

    Every user occurs as often as `_degrees` says. Each round draws as many items as a user still
    lacks and keeps the new pairs.
    """
    users, items = len(tastes[0]), len(shelves.orders[-1])
    lacking = _degrees(users, items, count, rng)
    accepted = np.zeros(0, np.int64)
    rounds = 0
    while lacking.any():
        user = np.repeat(np.arange(users), lacking)
        item = _draw(user, tastes, shelves, rng, blind=rounds >= ROUNDS)
        pairs = distinct((user * items + item)[item >= 0])
        position = np.searchsorted(accepted, pairs)
        new_pairs = pairs[np.append(accepted, -1)[position] != pairs]
        lacking -= np.bincount(new_pairs // items, minlength=users)
        # A stable sort merges the two sorted runs.
        accepted = np.sort(np.concatenate([accepted, new_pairs]), kind="stable")
        rounds += 1
    return (accepted // items).astype(np.int32), (accepted % items).astype(np.int32)


def _degrees(users: int, items: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw the number of interactions of each user [U].

    The sum is `count`. Every user gets a minimum; a long-tailed weight distributes the rest. A user
    has at most half of the items.
    """
    cap = items // 2
    degree = np.full(users, min(FEWEST, count // users, cap))
    weight = rng.lognormal(0, 0.8, users)
    while (remaining := count - degree.sum()) > 0:
        open_weight = np.where(degree < cap, weight, 0)
        share = remaining * open_weight / open_weight.sum()
        increment = np.floor(share).astype(np.int64)
        # The units lost by rounding go to the largest remainders.
        winners = np.argsort(increment - share, kind="stable")[: remaining - increment.sum()]
        increment[winners] += 1
        degree = np.minimum(degree + increment, cap)
    return degree


def _draw(
    user: np.ndarray,
    tastes: tuple[np.ndarray, ...],
    shelves: _Shelves,
    rng: np.random.Generator,
    *,
    blind: bool,
) -> np.ndarray:
    """Draw one item for each entry of `user`.

    The result is -1 where a taste matches no item. `blind` draws uniformly from all items.
    """
    items = len(shelves.orders[-1])
    item = rng.integers(0, items, len(user), dtype=np.int32)  # entries of the uniform share keep it
    if blind:
        return item
    mode = rng.random(len(user))
    popular = np.flatnonzero((mode >= TASTE) & (mode < TASTE + POPULAR))
    item[popular] = shelves.draw(-1, np.zeros(len(popular), np.int64), rng)
    taste_index = np.searchsorted(np.cumsum(TASTES)[:-1], rng.random(len(user)), side="right")
    category, kind, value = (codes[user, taste_index] for codes in tastes)
    for number, name in enumerate(shelves.others):
        rows = np.flatnonzero((mode < TASTE) & (kind == number))
        groups = category[rows] * len(WORDS[name]) + value[rows]
        item[rows] = shelves.draw(number, groups, rng)
    return item


def _match(
    user: np.ndarray, item: np.ndarray, tastes: tuple[np.ndarray, ...], values: dict
) -> np.ndarray:
    """Score how well each item fits its user [E].

    The score is in 0..1, the best over the user's tastes. Category and attribute value give 0.5
    each.
    """
    attribute_codes = np.stack([values[name] for name in WORDS if name != "category"], axis=1)
    match = np.zeros(len(user), np.float32)
    for start in range(0, len(user), CHUNK):
        rows = slice(start, start + CHUNK)
        users, items = user[rows], item[rows]
        for taste_index in range(len(TASTES)):
            category, kind, value = (codes[users, taste_index] for codes in tastes)
            score = 0.5 * (values["category"][items] == category)
            score += 0.5 * (attribute_codes[items, kind] == value)
            np.maximum(match[rows], score, out=match[rows])
    return match
