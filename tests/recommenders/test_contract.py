"""One behavioural test for all recommenders: every module of the folder is found and held to it."""

import copy
import dataclasses
import functools
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support import options

import mmjax.recommenders
from mmjax.core.errors import InputError
from mmjax.core.names import choice
from mmjax.data.prepare import prepare
from mmjax.data.synthetic import world
from mmjax.evaluation import protocol as protocols
from mmjax.evaluation import ranking
from mmjax.parallel import mesh as meshes
from mmjax.recommenders import base, losses, registry
from mmjax.training import assembly, ensemble
from mmjax.training.checkpoint import Checkpoints

pytestmark = pytest.mark.slow

NAMES = [
    module.name
    for module in pkgutil.iter_modules(mmjax.recommenders.__path__)
    if module.name not in registry.SHARED
]
EPOCHS = 20
NOBODY = 0  # a user whose history is taken away
USERS = np.array([5, NOBODY, 17, 5])  # who is scored


@pytest.fixture(scope="module")
def data():
    raw = world.generate(users=1200, items=300, interactions=36_000, seed=1)
    return prepare(raw, name="world", keep_items="all")


@pytest.fixture(scope="module")
def catalog(data):
    """The world's true attributes, one-hot, are the features: what a perfect encoder would see.

    Each modality lacks some items, and one user has no history.
    """
    hot = []
    for values in data.attributes.values():
        names, place = np.unique(values, return_inverse=True)
        hot.append(np.eye(len(names), dtype=np.float32)[place])
    features = {"visual": np.hstack(hot[:2]), "textual": np.hstack(hot[2:])}
    present = {m: np.arange(data.n_items) % 40 != n for n, m in enumerate(features)}
    features = {m: rows * present[m][:, None] for m, rows in features.items()}
    return with_history(base.Catalog.of(data, features, present), NOBODY, [])


def with_history(catalog, user, items):
    """The catalogue in which this user has had these items alone."""
    rest, items = catalog.train_user != user, np.asarray(items, np.int32)
    return base.Catalog(
        **vars(catalog)
        | {
            "train_user": np.append(np.full_like(items, user), catalog.train_user[rest]),
            "train_item": np.append(items, catalog.train_item[rest]),
            "train_rating": np.ones(len(items) + rest.sum(), np.float32),
        }
    )


def with_modalities(catalog, count):
    """The catalogue with one modality, under a name of its own, or with a third."""
    features, present = dict(catalog.features), dict(catalog.present)
    if count == 1:
        features, present = ({"multimodal": of["visual"]} for of in (features, present))
    elif count == 3:
        features["colours"] = features["visual"][:, ::-1]
        present["colours"] = present["visual"]
    return base.Catalog(**vars(catalog) | {"features": features, "present": present})


def build(name, catalog, seeds=(0,), lr=(1e-2,)):
    recommender = registry.find(name)
    known = set(registry._keywords(recommender.__init__, {"rngs"}))
    if hasattr(recommender, "loss"):
        known |= set(registry._keywords(recommender.loss, {"key"}))
    chosen = options.COMMON | options.OF_MODEL.get(name, {})
    chosen = {k: v for k, v in chosen.items() if k in known}
    shaping, traced = registry.split_options(recommender, chosen)
    return assembly.build(
        recommender,
        catalog,
        shaping,
        seeds=seeds,
        hypers={"lr": lr, **{k: [v] * len(seeds) for k, v in traced.items()}},
        settings=ensemble.Settings(batch_size=256),
        mesh=meshes.make("data=1"),
    )


class Program:
    """Trials of a recommender, and their compiled parts, so that its tests share them."""

    def __init__(self, trials, task):
        self.trials, self.task = trials, task
        # As the loop does: jitted, it would compile again for a state that it has returned itself.
        self.epoch = trials.program if trials.trainable else None
        self.rank = trials.evaluate((20,), map_capped=False)
        self.score = jax.jit(functools.partial(score, trials))

    def train(self, epochs, state=None):
        state = self.trials.init() if state is None else state
        for _ in range(epochs if self.epoch else 0):
            state, self.losses = self.epoch(*self.trials.arguments(state))
            assert np.isfinite(self.losses).all()
        return state

    def like(self, **changes):
        """The same compiled parts with other keys and rates."""
        other = copy.copy(self)
        other.trials = dataclasses.replace(self.trials, **changes)
        return other

    def recall(self, state):
        result = self.rank(
            state, self.trials.variant, self.trials.flags(), self.trials.frozen, self.task
        )
        return np.asarray(result["per_user"]["recall@20"]).mean(axis=1)

    def scores(self, state, users):
        """Of the first trial, [B, I]."""
        state = jax.tree.map(lambda x: x[0], state)
        return np.asarray(self.score(state, users))


def score(trials, state, users):
    model = trials.merge(state, trials.frozen)
    return model.scores(model.tables(), {"user": users})


@pytest.fixture(scope="module")
def task(data):
    protocol = protocols.find("strict")
    task = protocols.build(
        protocol,
        held_out=(data.test.user, data.test.item),
        rating=data.test.rating,
        masked=[(s.user, s.item) for s in (data.train, data.valid)],
        n_items=data.n_items,
        longest=20,
    )
    return ranking.chunk(task, data.n_items)


@pytest.fixture(scope="module", params=NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def alone(name, catalog, task):
    """One trial."""
    return Program(build(name, catalog, seeds=(3,)), task)


@pytest.fixture(scope="module")
def popularity(catalog, task):
    program = Program(build("mostpop", catalog), task)
    return program.recall(program.train(0))[0]


def test_learns_the_world_better_than_popularity(name, alone, popularity):
    reached = alone.recall(alone.train(EPOCHS))[0]
    assert reached >= options.FACTOR.get(name, 1.3) * popularity, (reached, popularity)


def test_jit_is_eager_and_a_batch_is_its_users_one_by_one(alone, catalog):
    state = alone.train(1)
    jitted = alone.scores(state, USERS)
    assert jitted.shape == (4, catalog.n_items)
    assert np.isfinite(jitted).all()
    eager = score(alone.trials, jax.tree.map(lambda x: x[0], state), jnp.asarray(USERS))
    np.testing.assert_allclose(jitted, eager, rtol=1e-6, atol=1e-6)
    one_by_one = np.concatenate([alone.scores(state, USERS[n : n + 1]) for n in range(4)])
    np.testing.assert_allclose(one_by_one, jitted, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(jitted[0], jitted[3])


@pytest.mark.parametrize("modalities", [1, 3])
def test_every_parameter_gets_a_gradient(name, modalities, catalog):
    """The same side by side, as accelerators run trials, as one by one; from random parameters."""
    trials = build(name, with_modalities(catalog, modalities), seeds=(0, 1), lr=(1e-2, 1e-2))
    if not trials.trainable:
        state = trials.init()
        assert not jax.tree.leaves(state["params"])
        scores = score(trials, jax.tree.map(lambda x: x[0], state), jnp.asarray(USERS))
        assert np.isfinite(scores).all()
        return
    rng = np.random.default_rng(0)
    states = jax.tree.map(
        lambda x: (0.1 * rng.normal(size=x.shape)).astype(x.dtype), jax.eval_shape(trials.init)
    )
    users = np.arange(64) % catalog.n_users
    batch = {"user": users, "pos": users % catalog.n_items, "neg": (users + 7) % catalog.n_items}
    batch["step"] = np.array(0)
    hypers = {k: v[0] for k, v in trials.hypers.items() if k != "lr"}

    def compute(state, batch):
        def loss(params):
            model = trials.merge(state | {"params": params}, trials.frozen)
            redrawn = model.epoch(jax.random.key(0)) if hasattr(model, "epoch") else {}
            return model.loss(batch, redrawn, **hypers, key=jax.random.key(1))

        return jax.value_and_grad(loss)(state["params"]), score(trials, state, USERS)

    (value, gradients), scores = found = jax.jit(compute)(
        jax.tree.map(lambda x: x[1], states), batch
    )
    assert value.shape == ()
    assert np.isfinite(scores).all()
    for path, gradient in jax.tree.leaves_with_path(gradients):
        assert np.isfinite(gradient).all(), path
        # What tells modalities apart gets none where there is one.
        idle = modalities == 1 and any(name in str(path) for name in ("attention", "prefers"))
        assert idle or np.any(gradient != 0), path
    if modalities > 1:
        abreast = jax.jit(jax.vmap(compute, (0, None)))(states, batch)
        largest = max(np.abs(gradient).max() for gradient in jax.tree.leaves(gradients))
        for one, other in zip(*map(jax.tree.leaves, (found, abreast)), strict=True):
            np.testing.assert_allclose(other[1], one, rtol=1e-4, atol=1e-5 * largest)


def test_trials_of_one_program_equal_separate_runs(name, alone, catalog, task):
    """Of both trials; the second is `alone`'s from its first draw on."""
    both = Program(pair(name, catalog), task)
    first = ensemble.pick(both.train(0), 0)
    after = both.train(2)
    values = both.recall(after)
    names = ("keys", "hypers", "variant")
    own = {name: getattr(both.trials, name) for name in names}
    own = jax.tree.map(lambda x: jax.device_put(x[:1], alone.trials.keys.sharding), own)
    begin = jax.device_put(jax.tree.map(lambda x: x[None], first), alone.trials.keys.sharding)
    ends = [alone.like(**own).train(2, begin), alone.train(2)]
    for n, end in enumerate(ends):
        for mine, theirs in zip(*map(jax.tree.leaves, (end, after)), strict=True):
            np.testing.assert_array_equal(mine[0], theirs[n])
        assert alone.recall(end)[0] == values[n]


def pair(name, catalog):
    return build(name, catalog, seeds=(4, 3), lr=(3e-3, 1e-2))


@pytest.mark.parametrize("kind", ["itemknn", "vbpr", "lattice", "freedom"])
def test_trials_side_by_side_as_on_an_accelerator(kind, catalog, task, monkeypatch):
    """vmapped from the first step to the ranking, they equal those in turn up to rounding."""
    in_turn = Program(pair(kind, catalog), task)
    begin = jax.tree.map(np.asarray, in_turn.train(0))
    end = in_turn.train(1)
    values = in_turn.recall(end)
    monkeypatch.setattr(ensemble.meshes, "is_cpu", lambda mesh: False)
    abreast = Program(pair(kind, catalog), task)
    state = abreast.train(0)
    for one, other in zip(*map(jax.tree.leaves, (begin, state)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    np.testing.assert_allclose(abreast.recall(end), values, atol=2e-3)
    abreast.train(1, state)
    if abreast.epoch:
        np.testing.assert_allclose(abreast.losses[:, :20], in_turn.losses[:, :20], rtol=1e-4)


def test_a_checkpoint_brings_back_the_same_scores(alone, tmp_path):
    state = alone.train(1)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"state": state}, {})
    checkpoints.wait()
    restored = checkpoints.load(1, {"state": alone.trials.init()})["state"]
    checkpoints.close()
    np.testing.assert_array_equal(*(alone.scores(one, USERS) for one in (state, restored)))


def test_a_user_who_has_every_item(name, catalog):
    """Nothing is left to sample for them: a trained recommender says so, the others need not."""
    full = with_history(catalog, NOBODY, range(catalog.n_items))
    if hasattr(registry.find(name), "loss"):
        with pytest.raises(InputError, match="user 0 has interacted with all"):
            build(name, full)
        return
    trials = build(name, full)
    state = jax.tree.map(lambda x: x[0], trials.init())
    assert np.isfinite(score(trials, state, jnp.array([0, 1]))).all()


def test_a_catalogue_of_one_item(name, catalog):
    """There is no negative to train on; what needs none ranks it."""
    features = {modality: rows[2:3] for modality, rows in catalog.features.items()}
    bought = dict(train_user=[0], train_item=[0], train_rating=[1.0])
    one = base.Catalog(
        n_users=2, n_items=1, features=features, **{k: np.array(v) for k, v in bought.items()}
    )
    if hasattr(registry.find(name), "loss"):
        with pytest.raises(InputError, match="interacted with all 1 items"):
            build(name, one)
        return
    trials = build(name, one)
    state = jax.tree.map(lambda x: x[0], trials.init())
    scores = np.asarray(score(trials, state, jnp.array([0, 1])))
    assert scores.shape == (2, 1)
    assert np.isfinite(scores).all()


def test_vbpr_without_features_says_so(catalog):
    bare = base.Catalog(**vars(catalog) | {"features": {}})
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
@pytest.mark.parametrize("kind", ["vbpr", "freedom", "lattice", "mmgcn", "attributeitemknn"])
@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_useless_features_stop_it_before_training(kind, change, says, catalog):
    features = dict(catalog.features) | {"visual": change(catalog.features["visual"])}
    with pytest.raises(InputError, match=says):
        build(kind, base.Catalog(**vars(catalog) | {"features": features}))


def test_more_neighbours_than_items_and_names_that_are_not_there(catalog):
    with pytest.raises(InputError, match="choose a number between 1 and 300"):
        catalog.neighbours("visual", 301)
    with pytest.raises(InputError, match="no features 'visuel'; did you mean 'visual'"):
        catalog.neighbours("visuel", 5)
    with pytest.raises(InputError, match="weights names 'picture'"):
        registry.find("freedom")(catalog, dim=8, weights={"picture": 0.1}, rngs=nnx.Rngs(0))


def test_unknown_names_come_with_suggestions():
    with pytest.raises(InputError, match="did you mean 'lightgcn'"):
        registry.find("lightgnc")
    with pytest.raises(InputError, match=r"no recommender 'nowhere\.model'"):
        registry.find("nowhere.model")
    with pytest.raises(InputError, match="did you mean 'layers'"):
        registry.split_options(registry.find("lightgcn"), {"dim": 8, "layer": 2, "l_w": 0.1})
    with pytest.raises(InputError, match="needs the option 'dim'"):
        registry.split_options(registry.find("lightgcn"), {"layers": 2, "l_w": 0.1})
    with pytest.raises(InputError, match="did you mean 'squares'"):
        choice("regulariser", "square", losses.PENALTIES)


def test_a_recommender_outside_the_package(tmp_path, monkeypatch, catalog, task):
    """One file anywhere on the path is found by name and trained."""
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
    toy = Program(build("toy_pack.toy_model", catalog), task)
    assert toy.recall(toy.train(10))[0] > 1.3 * toy.recall(toy.train(0))[0]
