"""Who is silent is named once; who speaks, or is leaving, is not."""

import threading
import time

import pytest

from mmjax.parallel.heartbeat import PLACE, Heartbeat

pytestmark = pytest.mark.slow

SECONDS = 0.6


class Store:
    """A key-value store in this process, that can stop answering."""

    def __init__(self):
        self.kept, self.hangs = {}, False

    def key_value_set(self, key, value, overwrite):
        while self.hangs:
            time.sleep(0.01)
        assert overwrite
        self.kept[key] = value

    def key_value_dir_get(self, place):
        return [(key, value) for key, value in self.kept.items() if key.startswith(place)]


@pytest.fixture
def three():
    """A store, heartbeats of processes 0 and 1 of three, and what they said."""
    kept, said = Store(), []
    lost = [lambda text, n=n: said.append((n, text)) for n in (0, 1)]
    both = [Heartbeat(kept, n, 3, SECONDS, lost[n]) for n in (0, 1)]
    for one in both:
        one.start()
    yield kept, both, said
    kept.hangs = False
    for one in both:
        one.stop()
    assert not any(thread.name == "heartbeat" for thread in threading.enumerate())


def beats(kept, count):
    for number in range(count):
        kept.kept[f"{PLACE}2"] = str(number)
        time.sleep(SECONDS / 6)


def test_who_is_silent_is_named_once(three):
    kept, _, said = three
    beats(kept, 12)
    assert not said  # all three speak
    time.sleep(2.5 * SECONDS)  # process 2 does not any more
    assert sorted(said) == [(n, "process 2 said nothing for 0.6 s") for n in (0, 1)]


def test_a_store_that_does_not_answer_is_process_0(three):
    kept, _, said = three
    beats(kept, 3)
    kept.hangs = True
    time.sleep(2.5 * SECONDS)
    assert {text for _, text in said} == {"process 0 said nothing for 0.6 s"}


def test_nobody_is_missed_by_who_leaves(three):
    kept, both, said = three
    beats(kept, 3)
    for one in both:
        one.leave()
    time.sleep(2.5 * SECONDS)
    assert not said
