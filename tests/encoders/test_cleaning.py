"""What Ducho's own code gives for these texts, spaces at the ends included."""

import pytest

from mmjax.encoders.inputs.cleaning import clean


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("I don't think it's John's.", "I do n't think it 's John 's . "),
        (
            "We'll see, they've won; I'd go (I'm in)",
            "We 'll see , they 've won ; I 'd go ( I 'm in ) ",
        ),
        ("the 'best' film, 7 o'clock", "the best film , seven o clock"),
        ("Wow!!! Really? Yes! !", "Wow ! Really ? Yes ! ! "),
        ("to be... or not..", "to be ... or not . . "),
        ("in the U.S. of A. B. Smith", "in the U.S. of A.B. Smith"),
        ("1 of 10 and 3.5, 2 4", "1 of 10 and three . five , two 4"),
        ("Café: £5 — déjà_vu\n\tnow", "Caf five d j vu now"),
        ("5 5 stars 5 5 5 ok", "5 five stars five 5 five ok"),
        ("", ""),
    ],
)
def test_texts_become_what_ducho_makes_of_them(text, wanted):
    assert clean(text) == wanted
