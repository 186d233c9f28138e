"""A synthetic catalogue with known truth: the embedded default and the source of scale tests.

Items have hidden attributes. Their picture shows all of them, their text states some. A user has a
few tastes, each a category together with a value of one other attribute ("striped bags"), and
interacts mostly with items that match one, drawn by popularity, at times with whatever is popular,
at times with anything. So other users' histories help (tastes are shared) and so does content
(rare items that match a taste have few histories).

Every draw is vectorised, so a million items and ten million interactions take seconds, and each
kind of draw has a stream of its own: pictures do not change the interactions, say.
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
FEWEST = 5  # interactions of a user
START, SPAN = 1_600_000_000, 2 * 365 * 86_400  # seconds: the first moment, and two years
ROUNDS = 8  # after so many, users who exhausted their tastes take anything
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
    """Draws a world.

    Args:
      interactions: exact number of distinct (user, item) pairs. Users have at least 5 each if
        there are enough.
      images: folder that gets `images/<thousand>/<id>.png`, which `Raw.images` names relative to
        it; None draws none.
      missing: share of items without picture, and of items without title and text.

    Raises:
      InputError: more interactions than half of all pairs, or fewer than one a user.
    """
    if min(users, items) < 1 or not 0 <= missing <= 1:
        raise InputError("a world needs --users and --items of at least 1 and --missing in [0, 1]")
    if not users <= interactions <= users * (items // 2):
        raise InputError(
            f"--interactions={interactions} does not fit {users} users and {items} items: it must "
            f"be from {users} (one a user) to {users * (items // 2)} (half of the items a user)"
        )
    look, taste, log, text, gone = (np.random.default_rng([seed, stream]) for stream in range(5))
    values = {name: look.integers(0, len(words), items) for name, words in WORDS.items()}
    popularity = (1.0 + look.permutation(items)) ** -ZIPF
    tastes = _tastes(users, taste)
    user, item = _interact(tastes, _Shelves(values, popularity), interactions, log)
    match = _match(user, item, tastes, values)
    rating = np.clip(np.rint(2.6 + 1.7 * match + log.normal(0, 0.8, interactions)), 1, 5)
    begin = log.uniform(0, 0.75, users)[user]  # of the span: when the user first appears
    time = START + (SPAN * (begin + (1 - begin) * log.random(interactions))).astype(np.int64)

    names = list(map(str, range(items)))
    titles = wording.write_titles(values, WORDS, text)
    texts = wording.write_texts(values, WORDS, text)
    without = round(missing * items)
    for place in gone.permutation(items)[:without].tolist():
        titles[place] = texts[place] = ""
    paths = [""] * items
    if images is not None:
        paths = [f"images/{number // 1000:03d}/{number}.jpg" for number in range(items)]
        for place in gone.permutation(items)[:without].tolist():
            paths[place] = ""
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
    """Items grouped by (category, other attribute, value), each group sorted to draw from.

    Shelf s of an attribute lies at `start[s]:start[s + 1]` of that attribute's order; the running
    sum of popularity along the order turns one uniform number into an item of the resources.
    """

    def __init__(self, values: dict[str, np.ndarray], popularity: np.ndarray):
        self.others = [name for name in WORDS if name != "category"]
        self.orders, self.sums, self.bounds = [], [], []
        shelves = [values["category"] * len(WORDS[name]) + values[name] for name in self.others]
        shelves.append(np.zeros(len(popularity), np.int64))  # one resources with everything
        sizes = [len(WORDS["category"]) * len(WORDS[name]) for name in self.others] + [1]
        for resources, size in zip(shelves, sizes, strict=True):
            order = np.argsort(resources, kind="stable").astype(np.int32)
            total = np.concatenate([[0.0], np.cumsum(popularity[order])])
            edges = np.searchsorted(resources[order], np.arange(size + 1))
            self.orders.append(order)
            self.sums.append(total)
            self.bounds.append(total[edges])

    def draw(self, kind: int, resources: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """An item of each resources of attribute `kind` (the last is everything); -1 if it is empty."""
        low, high = self.bounds[kind][resources], self.bounds[kind][resources + 1]
        point = low + rng.random(len(resources)) * (high - low)
        place = np.searchsorted(self.sums[kind], point, side="right") - 1
        item = self.orders[kind][np.minimum(place, len(self.orders[kind]) - 1)]
        return np.where(high > low, item, -1).astype(np.int32)


def _tastes(users: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """(category, attribute, value) codes [U, tastes] each; attribute numbers `_Shelves.others`."""
    shape = (users, len(TASTES))
    sizes = np.array([len(words) for name, words in WORDS.items() if name != "category"])
    kind = rng.integers(0, len(sizes), shape)
    value = (rng.random(shape) * sizes[kind]).astype(np.int64)
    return rng.integers(0, len(WORDS["category"]), shape), kind, value


def _interact(
    tastes: tuple[np.ndarray, ...], shelves: _Shelves, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Exactly `count` distinct pairs (user, item), sorted; every user as often as `_degrees` says.

    Each round draws for every user what is still lacking and keeps what is new.
    """
    users, items = len(tastes[0]), len(shelves.orders[-1])
    lacking = _degrees(users, items, count, rng)
    have = np.zeros(0, np.int64)
    rounds = 0
    while lacking.any():
        user = np.repeat(np.arange(users), lacking)
        item = _draw(user, tastes, shelves, rng, blind=rounds >= ROUNDS)
        pairs = distinct((user * items + item)[item >= 0])
        place = np.searchsorted(have, pairs)
        new = pairs[np.append(have, -1)[place] != pairs]
        lacking -= np.bincount(new // items, minlength=users)
        have = np.sort(np.concatenate([have, new]), kind="stable")  # two runs: a merge
        rounds += 1
    return (have // items).astype(np.int32), (have % items).astype(np.int32)


def _degrees(users: int, items: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Interactions a user [U]: a floor, then the rest by a long-tailed weight, `count` in sum."""
    cap = items // 2
    degree = np.full(users, min(FEWEST, count // users, cap))
    weight = rng.lognormal(0, 0.8, users)
    while (rest := count - degree.sum()) > 0:
        open_weight = np.where(degree < cap, weight, 0)
        share = rest * open_weight / open_weight.sum()
        whole = np.floor(share).astype(np.int64)
        # What rounding leaves goes to the largest remainders.
        ahead = np.argsort(whole - share, kind="stable")[: rest - whole.sum()]
        whole[ahead] += 1
        degree = np.minimum(degree + whole, cap)
    return degree


def _draw(
    user: np.ndarray,
    tastes: tuple[np.ndarray, ...],
    shelves: _Shelves,
    rng: np.random.Generator,
    *,
    blind: bool,
) -> np.ndarray:
    """An item for each entry of `user`; -1 where a taste matches no item."""
    items = len(shelves.orders[-1])
    item = rng.integers(0, items, len(user), dtype=np.int32)  # the uniform share stays
    if blind:
        return item
    mode = rng.random(len(user))
    popular = np.flatnonzero((mode >= TASTE) & (mode < TASTE + POPULAR))
    item[popular] = shelves.draw(-1, np.zeros(len(popular), np.int64), rng)
    which = np.searchsorted(np.cumsum(TASTES)[:-1], rng.random(len(user)), side="right")
    category, kind, value = (codes[user, which] for codes in tastes)
    for number, name in enumerate(shelves.others):
        rows = np.flatnonzero((mode < TASTE) & (kind == number))
        resources = category[rows] * len(WORDS[name]) + value[rows]
        item[rows] = shelves.draw(number, resources, rng)
    return item


def _match(
    user: np.ndarray, item: np.ndarray, tastes: tuple[np.ndarray, ...], values: dict
) -> np.ndarray:
    """How well the item fits the user [E] in 0..1: best over tastes, half a point each part."""
    others = np.stack([values[name] for name in WORDS if name != "category"], axis=1)
    match = np.zeros(len(user), np.float32)
    for start in range(0, len(user), CHUNK):
        rows = slice(start, start + CHUNK)
        here, there = user[rows], item[rows]
        for which in range(len(TASTES)):
            category, kind, value = (codes[here, which] for codes in tastes)
            part = 0.5 * (values["category"][there] == category)
            part += 0.5 * (others[there, kind] == value)
            np.maximum(match[rows], part, out=match[rows])
    return match
