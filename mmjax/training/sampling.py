"""Training batches drawn on device: shuffling and negatives as functions of seed, epoch and step.

Nothing here keeps state and nothing is as long as the data but the interactions themselves: the
order of an epoch is a keyed permutation that is evaluated at the positions a step asks for, and a
negative is the r-th item that the user does not have, found by bisection. So a step's batch does
not depend on what ran before it, on the number of devices, or on a kill in between.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.core.errors import InputError
from mmjax.core.unique import distinct
from mmjax.ops import binary_search

SAMPLERS = ("interactions", "users")
ROUNDS = 8


@dataclass(frozen=True)
class Positives:
    """Train interactions, to be put on device: E distinct (user, item) pairs over P items."""

    user: jax.Array  # [E] int32, ascending
    item: jax.Array  # [E] int32
    place: jax.Array  # [E] int32, position of `item` in `pool`; ascending within a user
    start: jax.Array  # [U + 1] int32, rows of each user
    pool: jax.Array  # [P] int32, items seen in train, ascending: where negatives come from
    active: jax.Array  # [A] int32, users with a train item
    longest: int  # most items of one user


jax.tree_util.register_dataclass(
    Positives,
    data_fields=["user", "item", "place", "start", "pool", "active"],
    meta_fields=["longest"],
)


def positives(user: np.ndarray, item: np.ndarray, n_users: int) -> Positives:
    """Prepares train interactions; repeated pairs count once.

    Raises:
      InputError: there are none, or a user has every item, so that no negative exists.
    """
    if len(user) == 0:
        raise InputError("the train split is empty")
    seen = np.bincount(item) > 0
    pool, place = np.flatnonzero(seen), np.cumsum(seen) - 1
    pairs = distinct(user.astype(np.int64) * len(pool) + place[item])
    user, place = (x.astype(np.int32) for x in np.divmod(pairs, len(pool)))
    counts = np.bincount(user, minlength=n_users)
    if counts.max() == len(pool):
        raise InputError(
            f"user {int(counts.argmax())} has interacted with all {len(pool)} items of the train "
            "split, so there is no negative to sample; leave such users out"
        )
    return Positives(
        user=user,
        item=pool[place].astype(np.int32),
        place=place,
        start=np.append(0, np.cumsum(counts)).astype(np.int32),
        pool=pool.astype(np.int32),
        active=np.flatnonzero(counts).astype(np.int32),
        longest=int(counts.max()),
    )


def steps(data: Positives, batch_size: int) -> int:
    """Steps of an epoch: every interaction once, the last batch filled up from the first."""
    return -(-data.user.shape[0] // batch_size)


def batch(
    key: jax.Array, step: jax.Array, data: Positives, batch_size: int, sampler: str
) -> dict[str, jax.Array]:
    """The batch of one step of the epoch that `key` belongs to: user, pos, neg, each [B].

    `interactions` takes each train interaction once an epoch, in shuffled order (MMRec, and the
    multimodal models of Elliot's forks). `users` draws a user uniformly with replacement, then one
    of their items (Elliot's own models). Negatives are uniform over the items seen in train that
    the user does not have.
    """
    order, drawn = jax.random.split(key)
    drawn = jax.random.fold_in(drawn, step)
    if sampler == "interactions":
        total = data.user.shape[0]
        position = (step * batch_size + jnp.arange(batch_size, dtype=jnp.uint32)) % total
        row = shuffle(order, position, total)
        user, pos = data.user[row], data.item[row]
    else:
        of_user, of_item, drawn = jax.random.split(drawn, 3)
        who = jax.random.randint(of_user, (batch_size,), 0, data.active.shape[0])
        user = data.active[who]
        row = jax.random.randint(of_item, who.shape, data.start[user], data.start[user + 1])
        pos = data.item[row]
    return {"user": user, "pos": pos, "neg": negatives(drawn, data, user)}


def negatives(key: jax.Array, data: Positives, user: jax.Array) -> jax.Array:
    """One item for each user [B], uniform over the pool without the user's own items.

    Same distribution as drawing until an item is not the user's, in one draw: of the P - n_u items
    left, the r-th stands r + j places into the pool, j being how many of the user's own come first.
    """
    start, end = data.start[user], data.start[user + 1]
    r = jax.random.randint(key, user.shape, 0, data.pool.shape[0] - (end - start))

    def before(place: jax.Array) -> jax.Array:
        return data.place.at[place].get(mode="clip") - (place - start) <= r

    j = binary_search.first(start, end, before, data.longest) - start
    return data.pool[r + j]


def shuffle(key: jax.Array, index: jax.Array, n: int) -> jax.Array:
    """A keyed permutation of range(n), evaluated at `index` alone.

    A Feistel network on an a x b grid just large enough for n; the few values that fall outside
    are sent through again until they are inside, which keeps it a bijection.
    """
    a = int(np.ceil(np.sqrt(n)))
    b = -(-n // a)
    keys = jax.random.bits(key, (ROUNDS,), jnp.uint32)

    def permute(x: jax.Array) -> jax.Array:
        left, right = x // b, x % b
        for r in range(0, ROUNDS, 2):
            left = (left + _mix(right, keys[r]) % a) % a
            right = (right + _mix(left, keys[r + 1]) % b) % b
        return left * b + right

    def again(x: jax.Array) -> jax.Array:
        return jnp.where(x >= n, permute(x), x)

    inside = jax.lax.while_loop(lambda x: (x >= n).any(), again, permute(index.astype(jnp.uint32)))
    return inside.astype(jnp.int32)


def _mix(x: jax.Array, key: jax.Array) -> jax.Array:
    """MurmurHash3's finaliser: every input bit reaches every output bit."""
    x = (x ^ key) * jnp.uint32(0x9E3779B1)
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
