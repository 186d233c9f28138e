"""Accuracy against pytrec_eval, list metrics against loops written from their definitions."""

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.evaluation import metrics

CUTOFFS = (1, 3, 10)


def gains_of(ranked, relevant, longest):
    gain = np.zeros((len(ranked), longest), np.float32)
    ideal = np.zeros_like(gain)
    for n, (items, wanted) in enumerate(zip(ranked, relevant, strict=True)):
        for r, item in enumerate(items[:longest]):
            gain[n, r] = wanted.get(int(item), 0)
        best = sorted(wanted.values(), reverse=True)[:longest]
        ideal[n, : len(best)] = best
    return gain, ideal, np.array([len(w) for w in relevant], np.float32)


@pytest.mark.slow
@given(st.integers(0, 10_000), st.booleans())
@settings(deadline=None, max_examples=30)
def test_accuracy_equals_pytrec_eval(seed, graded):
    rng = np.random.default_rng(seed)
    n_items, n_users, longest = 40, 6, 10
    ranked = [rng.permutation(n_items) for _ in range(n_users)]
    relevant = []
    for _ in range(n_users):
        items = rng.choice(n_items, rng.integers(1, 15), replace=False)
        gains = rng.integers(1, 6, len(items)) if graded else np.ones(len(items), int)
        relevant.append({int(i): int(g) for i, g in zip(items, gains, strict=True)})
    qrels = {f"{n}": {f"{i}": g for i, g in r.items()} for n, r in enumerate(relevant)}
    runs = {
        f"{n}": {f"{i}": float(n_items - r) for r, i in enumerate(items)}
        for n, items in enumerate(ranked)
    }
    names = {
        "recall": "recall",
        "precision": "P",
        "ndcg": "ndcg_cut",
        "map": "map_cut",
        "hr": "success",
    }
    measures = {f"{theirs}.{','.join(map(str, CUTOFFS))}" for theirs in names.values()}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, measures | {"recip_rank"}).evaluate(runs)
    ours = metrics.accuracy(*gains_of(ranked, relevant, longest), CUTOFFS)
    for n in range(n_users):
        for ours_name, their_name in names.items():
            for k in CUTOFFS:
                want = theirs[str(n)][f"{their_name}_{k}"]
                assert float(ours[f"{ours_name}@{k}"][n]) == pytest.approx(want, abs=1e-6)
        first = theirs[str(n)]["recip_rank"]
        for k in CUTOFFS:
            want = first if first * k >= 1 - 1e-9 else 0.0
            assert float(ours[f"mrr@{k}"][n]) == pytest.approx(want, abs=1e-6)


@pytest.mark.slow
def test_capped_average_precision():
    """One of three relevant items at rank 1, cutoff 1: all relevant items gives 1/3, MMRec's 1."""
    gain, ideal = np.array([[1, 0]], np.float32), np.array([[1, 1]], np.float32)
    relevant = np.array([3], np.float32)
    plain = metrics.accuracy(gain, ideal, relevant, (1,))
    capped = metrics.accuracy(gain, ideal, relevant, (1,), map_capped=True)
    assert float(plain["map@1"][0]) == pytest.approx(1 / 3)
    assert float(capped["map@1"][0]) == 1


def test_list_metrics_from_their_definitions():
    popularity = np.array([8, 6, 4, 1, 1, 0])
    ranked = np.array([[0, 3, 5], [1, 0, -1]])
    hit = np.array([[True, False, True], [False, True, False]])
    found = metrics.beyond_accuracy(ranked, hit, popularity, n_users=10, cutoffs=(2, 3))
    assert found["coverage@3"] == pytest.approx(4 / 6)
    assert found["arp@3"] == pytest.approx([(8 + 1 + 0) / 3, (6 + 8) / 2])
    # 80 % of the 20 interactions lie in items 0, 1, 2 (8 + 6 < 16 <= 18): the tail is 3, 4, 5.
    assert found["aplt@3"] == pytest.approx([2 / 3, 0])
    discount = 1 / np.log2([2, 3, 4])
    novelty = [1 - 8 / 10, 1 - 1 / 10]  # item 5 counts as one interaction
    want = (novelty[0] * discount[0] + novelty[1] * discount[2]) / discount.sum()
    assert found["epc@3"][0] == pytest.approx(want)
    information = -np.log2(np.array([8, 1]) / 20)
    want = (information[0] * discount[0] + information[1] * discount[2]) / discount.sum()
    assert found["efd@3"][0] == pytest.approx(want)
    assert found["efd@3"][1] == pytest.approx(information[0] * discount[1] / discount[:2].sum())


@given(st.lists(st.integers(0, 50), min_size=1, max_size=30))
def test_gini_is_the_mean_absolute_difference(counts):
    counts = np.array(counts)
    if counts.sum() == 0:
        assert metrics.gini(counts) == 0
        return
    pairs = np.abs(counts[:, None] - counts[None]).mean()
    assert metrics.gini(counts) == pytest.approx(pairs / (2 * counts.mean()))
