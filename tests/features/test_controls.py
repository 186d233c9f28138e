"""Noise controls: what they keep of the features, what they destroy, and the stores they fill."""

import json

import numpy as np
import pytest
from support.scripting import script

from mmjax import store
from mmjax.core.errors import InputError
from mmjax.features import controls

IDS = [f"i{n}" for n in range(4000)]


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    """Correlated rows of a rank below their width; every fifth is absent."""
    rng = np.random.default_rng(0)
    rows = 3 + rng.normal(size=(len(IDS), 4)) @ rng.normal(size=(4, 6)) * 2
    url = str(tmp_path_factory.mktemp("controls") / "features")
    present = np.arange(len(IDS)) % 5 != 0
    about = {"encoder": "real", "layer": "last", "prompt": "x"}
    store.write_array(url, rows.astype(np.float32), item_ids=IDS, present=present, **about)
    return url


@pytest.fixture(scope="module")
def made(features, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    return {
        kind: controls.control(features, str(folder / kind), kind, seed=3)
        for kind in controls.CONTROLS
    }


def test_rows_that_are_absent_stay_so(features, made):
    source = store.open_store(features)
    rows, present = source.read()
    for kind, opened in made.items():
        noise, there = opened.read()
        np.testing.assert_array_equal(there, present)
        assert noise.shape == rows.shape
        assert not noise[~present].any()
        assert (noise[present] != rows[present]).any(axis=1).mean() > 0.99
        about = opened.manifest["settings"]["control"]
        assert about["kind"] == kind
        assert about["features_hash"] == source.manifest["content_hash"]
        assert opened.manifest["encoder"] == "real"
        assert opened.manifest["settings"]["prompt"] == "x"
        assert opened.manifest["item_hash"] == source.manifest["item_hash"]


def test_what_each_keeps(features, made):
    rows, present = store.open_store(features).read()
    rows = rows[present].astype(np.float64)
    read = {kind: opened.read()[0][present].astype(np.float64) for kind, opened in made.items()}
    n = len(rows)
    # Five standard errors of a mean and of a covariance of n draws.
    noise = read["gaussian"]
    assert np.abs(noise.mean(0)).max() < 5 / n**0.5
    assert np.abs(np.cov(noise, rowvar=False) - np.eye(6)).max() < 5 * (2 / n) ** 0.5
    drawn, scale = read["multivariate"], np.sqrt(np.diag(np.cov(rows, rowvar=False)))
    apart = np.abs(drawn.mean(0) - rows.mean(0)) / scale
    assert apart.max() < 5 / n**0.5
    wanted, found = (np.cov(x, rowvar=False) / np.outer(scale, scale) for x in (rows, drawn))
    assert np.abs(found - wanted).max() < 5 * (2 / n) ** 0.5
    assert np.linalg.matrix_rank(drawn - drawn.mean(0), tol=1e-2) == 4  # as the features'
    order = [np.lexsort(x.T) for x in (rows, read["shuffle"])]
    np.testing.assert_array_equal(rows[order[0]], read["shuffle"][order[1]])


def test_a_seed_is_a_draw(features, made, tmp_path):
    for kind, opened in made.items():
        same = controls.control(features, tmp_path / kind, kind, seed=3)
        assert same.manifest["content_hash"] == opened.manifest["content_hash"]
        other = controls.control(features, tmp_path / kind, kind, seed=4, overwrite=True)
        assert other.manifest["content_hash"] != opened.manifest["content_hash"]


def test_few_rows():
    rng = np.random.default_rng(0)
    one = controls.multivariate(np.array([[1.0, 2.0]]), rng)
    np.testing.assert_array_equal(one, [[1.0, 2.0]])
    assert controls.multivariate(np.ones((3, 1)), rng).tolist() == [[1.0]] * 3
    wide = rng.normal(size=(3, 8))  # fewer rows than columns: draws stay in the rows' plane
    drawn = controls.multivariate(wide, rng)
    centre = wide.mean(0)
    basis = np.linalg.qr((wide - centre).T)[0][:, :2]
    left = (drawn - centre) - (drawn - centre) @ basis @ basis.T
    assert np.abs(left).max() < 1e-6


def test_what_cannot_be(features, tmp_path):
    with pytest.raises(InputError, match="there are gaussian, multivariate, shuffle"):
        controls.control(features, tmp_path / "out", "uniform")
    nobody = tmp_path / "nobody"
    store.write_array(nobody, np.zeros((2, 2)), item_ids=["a", "b"], present=np.zeros(2, bool))
    with pytest.raises(InputError, match="no present row"):
        controls.control(nobody, tmp_path / "out", "gaussian")


@pytest.mark.slow
def test_the_script(features, made, tmp_path):
    done = script(
        "store.py",
        "--action=control",
        f"--sources={features}",
        "--control=multivariate",
        "--seed=3",
        f"--store={tmp_path / 'out'}",
    )
    assert done.returncode == 0, done.stderr
    wanted = made["multivariate"].manifest["content_hash"]
    assert json.loads(done.stdout)["content_hash"] == wanted
