"""Trials trained together without a script, and trees compared bit for bit."""

import jax
import numpy as np

from mmjax.data import dataset
from mmjax.training import evaluator, experiment
from mmjax.training import fit as loop
from mmjax.training.checkpoint import Checkpoints


def fit(made, points, workdir, stores=None, variant=None):
    """Best states, progress and ensemble of these points after the loop; `stores` are the config's
    own if not given."""
    data, checkpoints = dataset.load(made["dataset"]), Checkpoints(workdir / "checkpoints")
    stores = experiment.features(made, data) if stores is None else stores
    trials, timing = experiment.trials(made, data, stores, points, variant), {"compile_s": 0.0}
    evaluate = evaluator.Evaluator(trials, experiment.tasks(made, data), made, data, timing)
    try:
        best, progress = loop.fit(
            trials, trials.init(), evaluate, checkpoints, made, workdir, timing
        )
    finally:
        checkpoints.close()
    return best, progress, trials


def same(one, other):
    """Asserts that two trees are: their structure, types and numbers."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert np.asarray(a).dtype == np.asarray(b).dtype
        np.testing.assert_array_equal(a, b)
