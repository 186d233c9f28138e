"""Clean English texts before tokenisation, exactly as Ducho's `clear_text`.

Characters other than ASCII's letters and digits and ' , . ! ; ? ( ) become a space, so accented
letters and other scripts are lost. Punctuation is set off by spaces, contractions are split
(do n't), single digits become words. Case and outer spaces stay: Ducho lowers and strips too but
throws that result away.
"""

import re

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ENDINGS = r"(?:s|ve|re|d|ll|m)\b"
STEPS = (
    (r"[^A-Za-z0-9',.!;?()]", " "),
    (r"(!)!*|([,.;?()])", r" \1\2 "),  # exclamation marks in a row are one
    (r"  +", " "),
    (r"[. ]{7,}", " ... "),  # three dots or more, with spaces around them by now
    # Initials are joined again, except those that begin the text.
    (r"(?<= )(?:\w \. )+\w \.", lambda initials: initials[0].replace(" ", "")),
    (r"n't", " n't"),
    (rf"'(?={ENDINGS})", " '"),
    (rf"'(?!{ENDINGS})(?!(?<=n')t\b)", " "),  # every other apostrophe
)


def clean(text: str) -> str:
    """Return a text with contractions, digits and punctuation separated.

    Contractions are split in two, digits that stand between spaces become words, and punctuation is
    set off by spaces.
    """
    for pattern, replacement in STEPS:
        text = re.sub(pattern, replacement, text)
    for digit, word in enumerate(DIGITS):
        text = text.replace(f" {digit} ", f" {word} ")
    return re.sub(r"  +", " ", text)
