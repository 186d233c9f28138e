"""Full-rank evaluation against brute force: masks, ties, chunks, devices; and MMRec's ranking."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.core.errors import InputError
from mmjax.evaluation import protocol as protocols
from mmjax.evaluation import ranking
from mmjax.parallel import mesh as meshes


def scores_of(tables, batch):
    return tables[batch["user"]]


def evaluate(matrix, task, cutoffs, **options):
    chunks = ranking.chunk(task, matrix.shape[1], **options.pop("chunk", {}))
    run = jax.jit(lambda m, c: ranking.rank(scores_of, m, c, cutoffs, **options))
    return jax.device_get(run(jnp.asarray(matrix, jnp.float32), chunks))


def case(seed, n_users=9, n_items=30):
    rng = np.random.default_rng(seed)
    label = rng.choice(4, size=(n_users, n_items), p=[0.6, 0.2, 0.1, 0.1])
    pairs = [np.nonzero(label == s) for s in (1, 2, 3)]
    rating = rng.integers(1, 6, len(pairs[2][0])).astype(np.float32)
    scores = rng.integers(0, 6, size=(n_users, n_items)).astype(np.float32)  # many ties
    return scores, pairs, rating


@pytest.mark.slow
@given(st.integers(0, 10_000), st.sampled_from(["strict", "mmrec"]), st.integers(1, 7))
@settings(deadline=None, max_examples=25)
def test_lists_masks_and_ties(seed, name, size):
    scores, (train, valid, test), rating = case(seed)
    masked = [train, valid] if name == "strict" else [train]
    if len(test[0]) == 0:
        return
    task = protocols.build(
        protocols.find(name), held_out=test, rating=rating, masked=masked, n_items=30, longest=12
    )
    result = evaluate(scores, task, (5, 12), chunk={"scores": size * 30})
    assert list(task.users) == sorted(set(test[0]))
    for n, user in enumerate(task.users):
        out = {i for pairs in masked for u, i in zip(*pairs, strict=True) if u == user}
        left = sorted((i for i in range(30) if i not in out), key=lambda i: (-scores[user, i], i))
        left = (left + [-1] * 12)[:12]
        assert list(result["ranked"][n]) == left
        wanted = {i for u, i in zip(*test, strict=True) if u == user}
        assert list(result["hit"][n]) == [i in wanted for i in left]


def test_graded_gains_and_threshold():
    scores = np.array([[5, 4, 3, 2.0], [0, 0, 0, 0]])
    held = (np.array([0, 0, 0]), np.array([0, 1, 3]))
    rating = np.array([3, 5, 4], np.float32)
    train = (np.array([0, 1, 1, 1]), np.array([2, 0, 1, 3]))
    task = protocols.build(
        protocols.find("elliot", 4.0),
        held_out=held,
        rating=rating,
        masked=[train],
        n_items=4,
        longest=3,
    )
    assert list(task.target.item) == [1, 3]  # the rating of 3 is not relevant
    assert list(task.gain) == [3, 1]  # 2^(5-4+1)-1, 2^(4-4+1)-1
    found = evaluate(scores, task, (3,))["per_user"]
    weight = 1 / np.log2([2, 3, 4])
    want = (3 * weight[1] + 1 * weight[2]) / (3 * weight[0] + 1 * weight[1])
    assert found["ndcg@3"][0] == pytest.approx(want)
    zero = protocols.build(
        protocols.find("elliot", 0.0),
        held_out=held,
        rating=rating,
        masked=[train],
        n_items=4,
        longest=3,
    )
    assert list(zero.gain) == [15, 63, 31]


def test_items_without_train_do_not_exist_for_elliot():
    scores = np.array([[9, 5, 7, 3, 1.0]])
    train, held = (np.array([0, 0, 1]), np.array([1, 3, 4])), (np.array([0, 0]), np.array([2, 4]))
    task = protocols.build(
        protocols.find("elliot"),
        held_out=held,
        rating=np.ones(2, np.float32),
        masked=[train],
        n_items=5,
        longest=2,
    )
    assert list(task.relevant) == [1]  # item 2 is cold and no longer counts
    assert evaluate(scores, task, (2,))["ranked"].tolist() == [[4, -1]]


def test_overlap_is_refused():
    pairs = (np.array([0, 1]), np.array([2, 3]))
    with pytest.raises(InputError, match="first user 1 item 3"):
        protocols.build(
            protocols.find("strict"),
            held_out=pairs,
            rating=np.ones(2, np.float32),
            masked=[(np.array([1]), np.array([3]))],
            n_items=5,
            longest=3,
        )


def test_nothing_relevant_is_refused():
    pairs = (np.array([0]), np.array([2]))
    with pytest.raises(InputError, match="rating >= 4"):
        protocols.build(
            protocols.find("elliot", 4.0),
            held_out=pairs,
            rating=np.ones(1, np.float32),
            masked=[(np.array([1]), np.array([2]))],
            n_items=5,
            longest=3,
        )
    with pytest.raises(InputError, match="there are strict, mmrec, elliot"):
        protocols.find("strickt")


@pytest.mark.slow
def test_scores_that_are_not_finite_are_refused():
    scores, (train, _, test), rating = case(1)
    scores[int(test[0][0]), 3] = np.nan
    task = protocols.build(
        protocols.find("mmrec"),
        held_out=test,
        rating=rating,
        masked=[train],
        n_items=30,
        longest=5,
    )
    result = evaluate(scores, task, (5,))
    assert not result["finite"]
    with pytest.raises(InputError, match="not finite"):
        ranking.summarise(result, task, popularity=np.ones(30, int), n_users=9, cutoffs=(5,))


@pytest.mark.slow
def test_eight_devices_rank_as_one():
    scores, (train, _, test), rating = case(5, n_users=37)
    task = protocols.build(
        protocols.find("mmrec"),
        held_out=test,
        rating=rating,
        masked=[train],
        n_items=30,
        longest=10,
    )
    alone = evaluate(scores, task, (10,))
    grid = meshes.make("data=8")
    spread = evaluate(
        scores,
        task,
        (10,),
        chunk={"multiple": 8},
        constrain=lambda x: jax.lax.with_sharding_constraint(x, meshes.rows(grid)),
    )
    for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(spread), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["bpr", "lightgcn", "vbpr"])
@pytest.mark.parametrize("split", ["valid", "test"])
def test_mmrec_ranks_and_counts_the_same(parity, model, split):
    ref = np.load(parity / f"{model}.npz")
    task = protocols.build(
        protocols.find("mmrec"),
        held_out=(ref[f"{split}_u"], ref[f"{split}_i"]),
        rating=np.ones(len(ref[f"{split}_u"]), np.float32),
        masked=[(ref["train_u"], ref["train_i"])],
        n_items=120,
        longest=50,
    )
    np.testing.assert_array_equal(task.users, ref[f"eval_users_{split}"])
    # The dump's own scores, so that only ranking and metrics are compared.
    result = evaluate(ref["scores"], task, (5, 10, 20, 50), map_capped=True)
    np.testing.assert_array_equal(result["ranked"], ref[f"top50_{split}"])
    wanted = json.loads(str(ref["metrics"]))
    found = ranking.summarise(
        result, task, popularity=np.ones(120, int), n_users=200, cutoffs=()
    ).overall
    for metric in ("recall", "ndcg", "precision", "map"):
        for k in (5, 10, 20, 50):
            want = wanted[f"{split}/{metric}@{k}"]
            assert found[f"{metric}@{k}"] == pytest.approx(want, abs=1e-6)
