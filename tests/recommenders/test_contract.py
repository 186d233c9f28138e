"""One behavioural test for all recommenders: every module of the folder is found and held to it."""

import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from recommenders import options

import mmjax.recommenders
from mmjax import ensemble
from mmjax import mesh as meshes
from mmjax.checkpoint import Checkpoints
from mmjax.data import world
from mmjax.data.prepare import prepare
from mmjax.errors import InputError
from mmjax.evaluation import protocol as protocols
from mmjax.evaluation import ranking
from mmjax.recommenders import core

NAMES = [
    module.name
    for module in pkgutil.iter_modules(mmjax.recommenders.__path__)
    if module.name not in core.SHARED
]
EPOCHS = 20


def worlds(users, items, interactions):
    raw = world.generate(users=users, items=items, interactions=interactions, seed=1)
    return prepare(raw, name="world", keep_items="all")


@pytest.fixture(scope="module")
def data():
    """Small: most of what is asked here has nothing to do with how well a model learns."""
    return worlds(300, 120, 6_000)


@pytest.fixture(scope="module")
def catalog(data):
    return catalog_of(data)


def catalog_of(data):
    """The world's true attributes, one-hot, are the features: what a perfect encoder would see."""
    hot = []
    for values in data.attributes.values():
        names, place = np.unique(values, return_inverse=True)
        hot.append(np.eye(len(names), dtype=np.float32)[place])
    features = {"visual": np.hstack(hot[:2]), "textual": np.hstack(hot[2:])}
    return core.Catalog.of(data, features, dict.fromkeys(features, np.ones(data.n_items, bool)))


def build(name, catalog, seeds=(0,), lr=(1e-2,)):
    recommender = core.find(name)
    known = set(core._keywords(recommender.__init__, {"rngs"}))
    if hasattr(recommender, "loss"):
        known |= set(core._keywords(recommender.loss, {"key"}))
    chosen = options.COMMON | options.OF_MODEL.get(name, {})
    chosen = {k: v for k, v in chosen.items() if k in known}
    shaping, traced = core.split_options(recommender, chosen)
    return ensemble.build(
        recommender,
        catalog,
        shaping,
        seeds=seeds,
        hypers={"lr": lr, **{k: [v] * len(seeds) for k, v in traced.items()}},
        settings=ensemble.Settings(batch_size=256),
        mesh=meshes.make("data=1"),
    )


def train(trials, epochs):
    state = trials.init()
    if trials.trainable:
        step = trials.epoch()
        for _ in range(epochs):
            state, losses = step(*trials.arguments(state))
            assert np.isfinite(losses).all()
    return state


def model_of(trials, state, trial=0):
    return trials.merge(jax.tree.map(lambda x: x[trial], state), trials.frozen)


def recall(trials, state, data):
    protocol = protocols.find("strict")
    task = protocols.build(
        protocol,
        held_out=(data.test.user, data.test.item),
        rating=data.test.rating,
        masked=[(s.user, s.item) for s in (data.train, data.valid)],
        n_items=data.n_items,
        longest=20,
    )
    chunks = ranking.chunk(task, data.n_items)
    result = trials.evaluate((20,), map_capped=False)(state, trials.frozen, chunks)
    return np.asarray(result["per_user"]["recall@20"]).mean(axis=1)


@pytest.fixture(scope="module")
def large():
    data = worlds(1200, 300, 36_000)
    catalog = catalog_of(data)
    trials = build("mostpop", catalog)
    return data, catalog, recall(trials, trials.init(), data)[0]


@pytest.mark.parametrize("name", NAMES)
def test_learns_the_world_better_than_popularity(name, large):
    data, catalog, popularity = large
    trials = build(name, catalog)
    reached = recall(trials, train(trials, EPOCHS), data)[0]
    assert reached >= options.FACTOR.get(name, 1.3) * popularity, (reached, popularity)


@pytest.mark.parametrize("name", NAMES)
def test_jit_is_eager_and_a_batch_is_its_users_one_by_one(name, catalog):
    trials = build(name, catalog)
    model = model_of(trials, trials.init())
    users = jnp.array([5, 0, 17, 5])
    eager = model.scores(model.tables(), {"user": users})
    assert eager.shape == (4, catalog.n_items)
    graphdef, variables = nnx.split(model)

    @jax.jit
    def score(variables, users):
        model = nnx.merge(graphdef, variables)
        return model.scores(model.tables(), {"user": users})

    np.testing.assert_allclose(score(variables, users), eager, rtol=1e-6, atol=1e-6)
    alone = jnp.concatenate([score(variables, users[n : n + 1]) for n in range(4)])
    np.testing.assert_allclose(alone, eager, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(eager[0], eager[3])


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_gets_a_gradient(name, catalog):
    trials = build(name, catalog)
    if not trials.trainable:
        assert not jax.tree.leaves(trials.init()["params"])
        return
    state = jax.tree.map(lambda x: x[0], trials.init())
    users = jnp.arange(64) % catalog.n_users
    batch = {"user": users, "pos": users % catalog.n_items, "neg": (users + 7) % catalog.n_items}
    batch["step"] = jnp.array(0)
    hypers = {k: v[0] for k, v in trials.hypers.items() if k != "lr"}

    def loss(params):
        model = trials.merge(state | {"params": params}, trials.frozen)
        redrawn = model.epoch(jax.random.key(0)) if hasattr(model, "epoch") else {}
        return model.loss(batch, redrawn, **hypers, key=jax.random.key(1))

    value, gradients = jax.jit(jax.value_and_grad(loss))(state["params"])
    assert value.shape == ()
    for path, gradient in jax.tree.leaves_with_path(gradients):
        assert np.isfinite(gradient).all(), path
        assert np.abs(gradient).max() > 0, path


@pytest.mark.parametrize("name", NAMES)
def test_trials_of_one_program_equal_separate_runs(name, data, catalog):
    together = build(name, catalog, seeds=(3, 4), lr=(1e-2, 3e-3))
    state = train(together, 2)
    for trial, (seed, lr) in enumerate(((3, 1e-2), (4, 3e-3))):
        alone = build(name, catalog, seeds=(seed,), lr=(lr,))
        other = train(alone, 2)
        for mine, theirs in zip(
            jax.tree.leaves(state["params"]), jax.tree.leaves(other["params"]), strict=True
        ):
            np.testing.assert_array_equal(mine[trial], theirs[0])
        assert recall(together, state, data)[trial] == recall(alone, other, data)[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_user_without_history_is_scored(name, data, catalog):
    keep = catalog.train_user != 0
    without = core.Catalog(
        **vars(catalog)
        | {k: getattr(catalog, k)[keep] for k in ("train_user", "train_item", "train_rating")}
    )
    trials = build(name, without)
    model = model_of(trials, train(trials, 1))
    scores = model.scores(model.tables(), {"user": jnp.array([0])})
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", ["one modality", "three modalities", "gaps"])
def test_features_of_any_number_and_with_gaps(name, case, catalog):
    features, present = dict(catalog.features), {}
    if case == "one modality":
        features = {"multimodal": features["visual"]}
    elif case == "three modalities":
        features["colours"] = features["visual"][:, ::-1]
    else:
        for n, modality in enumerate(features):
            present[modality] = np.arange(catalog.n_items) % 3 != n
            features[modality] = np.where(present[modality][:, None], features[modality], 0)
    changed = core.Catalog(**vars(catalog) | {"features": features, "present": present})
    trials = build(name, changed)
    model = model_of(trials, train(trials, 1))
    scores = model.scores(model.tables(), {"user": jnp.arange(8)})
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_brings_back_the_same_scores(name, catalog, tmp_path):
    trials = build(name, catalog)
    state = train(trials, 1)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"state": state}, {})
    checkpoints.wait()
    restored = checkpoints.load(1, {"state": trials.init()})["state"]
    checkpoints.close()
    batch = {"user": jnp.arange(8)}
    before, after = (model_of(trials, one) for one in (state, restored))
    np.testing.assert_array_equal(
        before.scores(before.tables(), batch), after.scores(after.tables(), batch)
    )


@pytest.mark.parametrize("name", NAMES)
def test_trials_side_by_side_as_on_an_accelerator(name, data, catalog, monkeypatch):
    """vmapped, as accelerators run them, trials equal those in turn up to the order of sums."""
    in_turn = build(name, catalog, seeds=(3, 4), lr=(1e-2, 3e-3))
    monkeypatch.setattr(ensemble.meshes, "is_cpu", lambda mesh: False)
    abreast = build(name, catalog, seeds=(3, 4), lr=(1e-2, 3e-3))
    states = [trials.init() for trials in (in_turn, abreast)]
    for one, other in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    if in_turn.trainable:
        losses = []
        for n, (trials, state) in enumerate(zip((in_turn, abreast), states, strict=True)):
            monkeypatch.setattr(ensemble.meshes, "is_cpu", lambda mesh, cpu=n == 0: cpu)
            states[n], loss = trials.epoch()(*trials.arguments(state))
            losses.append(loss)
        np.testing.assert_allclose(*losses, rtol=1e-4)
    values = [recall(t, s, data) for t, s in zip((in_turn, abreast), states, strict=True)]
    np.testing.assert_allclose(*values, atol=2e-3)


@pytest.mark.parametrize("name", NAMES)
def test_a_user_who_has_every_item(name, catalog):
    """Nothing is left to sample for them: a trained recommender says so, the others need not."""
    rest = catalog.train_user != 0
    everything = np.arange(catalog.n_items, dtype=np.int32)
    full = core.Catalog(
        **vars(catalog)
        | {
            "train_user": np.append(np.zeros_like(everything), catalog.train_user[rest]),
            "train_item": np.append(everything, catalog.train_item[rest]),
            "train_rating": np.ones(len(everything) + rest.sum(), np.float32),
        }
    )
    if hasattr(core.find(name), "loss"):
        with pytest.raises(InputError, match="user 0 has interacted with all"):
            build(name, full)
        return
    trials = build(name, full)
    model = model_of(trials, trials.init())
    assert np.isfinite(model.scores(model.tables(), {"user": jnp.array([0, 1])})).all()


def test_vbpr_without_features_says_so(catalog):
    bare = core.Catalog(**vars(catalog) | {"features": {}})
    with pytest.raises(InputError, match="needs item features"):
        build("vbpr", bare)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x: x[:-1], "each needs one row"),
        (lambda x: np.where(x == x[3, 0], np.nan, x), "hold NaN or infinite"),
        (lambda x: x * np.inf, "hold NaN or infinite"),
        (np.zeros_like, "are all zero"),
    ],
)
@pytest.mark.parametrize("name", ["vbpr", "freedom", "lattice", "mmgcn", "itemknncbf"])
@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_useless_features_stop_it_before_training(name, change, says, catalog):
    features = dict(catalog.features) | {"visual": change(catalog.features["visual"])}
    with pytest.raises(InputError, match=says):
        build(name, core.Catalog(**vars(catalog) | {"features": features}))


def test_more_neighbours_than_items_and_names_that_are_not_there(catalog):
    with pytest.raises(InputError, match="choose a number between 1 and 120"):
        catalog.neighbours("visual", 121)
    with pytest.raises(InputError, match="no features 'visuel'; did you mean 'visual'"):
        catalog.neighbours("visuel", 5)
    with pytest.raises(InputError, match="weights name 'image'"):
        core.find("freedom")(catalog, dim=8, weights={"image": 0.1}, rngs=nnx.Rngs(0))


def test_unknown_names_come_with_suggestions():
    with pytest.raises(InputError, match="did you mean 'lightgcn'"):
        core.find("lightgnc")
    with pytest.raises(InputError, match=r"no recommender 'nowhere\.model'"):
        core.find("nowhere.model")
    with pytest.raises(InputError, match="did you mean 'layers'"):
        core.split_options(core.find("lightgcn"), {"dim": 8, "layer": 2, "l_w": 0.1})
    with pytest.raises(InputError, match="needs the option 'dim'"):
        core.split_options(core.find("lightgcn"), {"layers": 2, "l_w": 0.1})
    with pytest.raises(InputError, match="did you mean 'squares'"):
        core.choice("regulariser", "square", core.PENALTIES)


def test_a_recommender_outside_the_package(tmp_path, monkeypatch, large):
    """One file anywhere on the path is found by name and trained."""
    data, catalog, _ = large
    (tmp_path / "toy_model.py").write_text(
        "import jax, jax.numpy as jnp\n"
        "from flax import nnx\n"
        "class Toy(nnx.Module):\n"
        "    def __init__(self, catalog, *, dim, rngs):\n"
        "        self.user = nnx.Param(rngs.params.normal((catalog.n_users, dim)) * 0.1)\n"
        "        self.item = nnx.Param(rngs.params.normal((catalog.n_items, dim)) * 0.1)\n"
        "    def loss(self, batch, epoch, *, key):\n"
        "        u, i, j = self.user[...], self.item[...], self.item[...]\n"
        "        d = (u[batch['user']] * (i[batch['pos']] - j[batch['neg']])).sum(-1)\n"
        "        return jax.nn.softplus(-d).mean()\n"
        "    def tables(self):\n"
        "        return self.user[...], self.item[...]\n"
        "    def scores(self, tables, batch):\n"
        "        return tables[0][batch['user']] @ tables[1].T\n"
    )
    (tmp_path / "toy_pack").mkdir()
    (tmp_path / "toy_model.py").rename(tmp_path / "toy_pack" / "toy_model.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    trials = build("toy_pack.toy_model", catalog)
    untrained = recall(trials, trials.init(), data)[0]
    assert recall(trials, train(trials, 10), data)[0] > 1.3 * untrained
