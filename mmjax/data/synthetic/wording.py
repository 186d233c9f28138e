"""Write titles and descriptions of synthetic items.

A title names the category and perhaps one more attribute. A description states a random subset of
the attributes. Every statement is true.
"""

import numpy as np

# Product names without information about the item.
NAMES = (
    *("Alder", "Bramble", "Calder", "Dovetail", "Ember", "Fennel", "Gable", "Harbour", "Indra"),
    *("Juniper", "Kestrel", "Linden", "Marlow", "Norrland", "Osprey", "Pebble", "Quill", "Rowan"),
    *("Saffron", "Tamar", "Umber", "Verity", "Willow", "Yarrow", "Zephyr"),
)
STATED = 0.55  # chance of each attribute to be stated in the description
SENTENCES = {
    "category": (
        "A {} for every day.",
        "This {} is made to last.",
        "The {} that guests ask about.",
        "Our best known {}.",
    ),
    "colour": ("It comes in {}.", "The colour is {}.", "Finished in {}."),
    "material": ("It is made of {}.", "The maker works in {}.", "Made from {} by hand."),
    "pattern": ("The surface is {}.", "Its surface is {}.", "It has a {} surface."),
    "style": ("The style is {}.", "It suits a {} room.", "Chosen for {} homes."),
}
OPENINGS = ("A gift for every day.", "Made to last.", "Guests will ask about it.")


def write_titles(
    values: dict[str, np.ndarray], words: dict[str, tuple[str, ...]], rng: np.random.Generator
) -> list[str]:
    """Return titles such as "Rowan 17, teal mug".

    A third of them name the colour, a third the style.
    """
    count = len(values["category"])
    extra = rng.integers(0, 3, count)
    plain = np.full(count, "", object)
    prefixes = np.where(
        extra == 0,
        _say(values["colour"], words["colour"], "{} "),
        np.where(extra == 1, _say(values["style"], words["style"], "{} "), plain),
    )
    names = np.array(NAMES, object)[rng.integers(0, len(NAMES), count)]
    numbers = rng.integers(1, 100, count)
    kinds = np.array(words["category"], object)[values["category"]]
    rows = zip(names.tolist(), numbers.tolist(), prefixes.tolist(), kinds.tolist(), strict=True)
    return [f"{name} {number}, {prefix}{kind}" for name, number, prefix, kind in rows]


def write_texts(
    values: dict[str, np.ndarray], words: dict[str, tuple[str, ...]], rng: np.random.Generator
) -> list[str]:
    """Return descriptions of one to five short sentences.

    At least one sentence states an attribute.
    """
    count = len(values["category"])
    stated = rng.random((count, len(SENTENCES))) < STATED
    stated[np.arange(count), rng.integers(0, len(SENTENCES), count)] = True
    columns = []
    for position, (attribute, templates) in enumerate(SENTENCES.items()):
        template_index = rng.integers(0, len(templates), count)
        column = np.full(count, "", object)
        for number, template in enumerate(templates):
            rows = np.flatnonzero(stated[:, position] & (template_index == number))
            column[rows] = _say(values[attribute][rows], words[attribute], template)
        columns.append(column)
    rows = np.flatnonzero(~stated[:, 0])  # SENTENCES begins with the category
    columns[0][rows] = np.array(OPENINGS, object)[rng.integers(0, len(OPENINGS), len(rows))]
    sentences = zip(*(column.tolist() for column in columns), strict=True)
    return [" ".join(filter(None, row)) for row in sentences]


def _say(codes: np.ndarray, words: tuple[str, ...], template: str) -> np.ndarray:
    return np.array([template.format(word) for word in words], object)[codes]
