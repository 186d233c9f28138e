"""Names of modalities: what options and presets mean by them, and their order."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support import formulas

from mmjax.core import modality
from mmjax.core.errors import InputError
from mmjax.recommenders import base, registry
from mmjax.recommenders.layers import projection

MMREC = {"visual": "image_feat", "textual": "text_feat"}


def test_names_mean_a_modality_and_come_in_the_papers_order():
    assert [modality.kind(name) for name in ("image_feat", "visual", "depth")] == [
        "visual",
        "visual",
        "depth",
    ]
    assert modality.ordered(["b", "text_feat", "audio", "a", "image_feat"]) == [
        "image_feat",
        "text_feat",
        "audio",
        "a",
        "b",
    ]
    assert modality.ordered({"textual": 0, "visual": 1}) == ["visual", "textual"]
    assert modality.meant("visual", ["text_feat", "image_feat"]) == "image_feat"
    assert modality.meant("visual", ["visual", "image_feat"]) == "visual"
    assert modality.meant("visual", ["img", "image_feat"]) is None  # which?
    assert modality.meant("visual", ["text_feat"]) is None


def test_values_by_name():
    names = ("image_feat", "text_feat")
    assert projection.by_modality("weights", {"visual": 0.1}, names) == {"image_feat": 0.1}
    assert projection.shares(names, {"visual": 0.1}, 1.0) == {"image_feat": 0.1, "text_feat": 0.9}
    with pytest.raises(InputError, match="weights names 'visuel'"):
        projection.by_modality("weights", {"visuel": 0.1}, names)
    with pytest.raises(InputError, match="names the modality 'image_feat' twice"):
        projection.by_modality("weights", {"visual": 0.1, "image": 0.2}, names)
    # Every modality has its value: the others are of data that has more.
    assert projection.by_modality("latent", {"visual": 256, "textual": 0}, names[1:]) == {
        "text_feat": 0
    }


@pytest.mark.slow
@pytest.mark.parametrize("model", ["freedom", "dragon", "pgl", "mmgcn", "slmrec", "grcn", "smore"])
@pytest.mark.parametrize("preset", ["default", "mmrec"])
def test_presets_run_on_mmrecs_names(model, preset):
    """They start, and score, as on `visual` and `textual`."""
    config = importlib.import_module(f"configs.{model}").get_config(preset)
    recommender = registry.find(model)
    options = config.model.to_dict() | {"dim": 8}
    options |= {"top_k": 3} if "top_k" in options else {}
    shaping, _ = registry.split_options(recommender, options)
    ours, scores = formulas.catalog(), []
    theirs = base.Catalog(
        **vars(ours)
        | {
            "features": {MMREC[name]: rows for name, rows in ours.features.items()},
            "present": {MMREC[name]: rows for name, rows in ours.present.items()},
        }
    )
    with jax.enable_x64(True):
        for catalog in (ours, theirs):
            built = recommender(catalog, **shaping, rngs=nnx.Rngs(params=0))
            scores.append(np.asarray(built.scores(built.tables(), {"user": jnp.arange(3)})))
    assert np.isfinite(scores[0]).all()
    assert (scores[0] == scores[1]).all()
