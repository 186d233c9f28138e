"""Cleaning a text before it is tokenised, exactly as Ducho's `clear_text` does; for English only.

What is none of ASCII's letters and digits and ' , . ! ; ? ( ) becomes a space, so accented letters
and other scripts are lost. Punctuation stands alone, contractions are split (do n't), lone digits
become words. Case and outer spaces stay: Ducho lowers and strips too but throws that result away.
"""

import re

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ENDINGS = r"(?:s|ve|re|d|ll|m)\b"
STEPS = (
    (r"[^A-Za-z0-9',.!;?()]", " "),
    (r"(!)!*|([,.;?()])", r" \1\2 "),  # exclamation marks in a row are one
    (r"  +", " "),
    (r"[. ]{7,}", " ... "),  # three dots, which now stand between spaces, or more
    # Initials are put together again, but for those that begin the text.
    (r"(?<= )(?:\w \. )+\w \.", lambda initials: initials[0].replace(" ", "")),
    (r"n't", " n't"),
    (rf"'(?={ENDINGS})", " '"),
    (rf"'(?!{ENDINGS})(?!(?<=n')t\b)", " "),  # every other apostrophe
)


def clean(text: str) -> str:
    """English words, contractions in two, lone digits as words, punctuation apart."""
    for pattern, replacement in STEPS:
        text = re.sub(pattern, replacement, text)
    for digit, word in enumerate(DIGITS):
        text = text.replace(f" {digit} ", f" {word} ")
    return re.sub(r"  +", " ", text)
