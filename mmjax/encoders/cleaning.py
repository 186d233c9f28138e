"""Cleaning a text before it is tokenised, as Ducho's `clear_text` does.

English contractions are written out, digits become words, punctuation stands alone. Case stays:
Ducho lowers it too but throws that result away, and tokenizers do it where a model wants it.
"""

import re

# In this order: the irregular ones before the endings that they also match.
CONTRACTIONS = (
    (r"\bwon't\b", "will not"),
    (r"\bcan't\b", "can not"),
    (r"\bshan't\b", "shall not"),
    (r"n't\b", " not"),
    (r"\b(what|that|there|it|he|she|who|where|how)'s\b", r"\1 is"),
    (r"\bi'm\b", "I am"),
    (r"'re\b", " are"),
    (r"'ve\b", " have"),
    (r"'ll\b", " will"),
    (r"'d\b", " would"),
)
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def clean(text: str) -> str:
    """One line of words: contractions written out, each digit a word, punctuation apart."""
    text = text.replace("\u2019", "'")
    for pattern, words in CONTRACTIONS:
        text = re.sub(pattern, words, text, flags=re.IGNORECASE)
    text = re.sub(r"\d", lambda digit: f" {DIGITS[int(digit[0])]} ", text, flags=re.ASCII)
    text = re.sub(r"([^\w\s'])", r" \1 ", text)
    return " ".join(text.split())
