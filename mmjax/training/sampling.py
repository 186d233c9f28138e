"""Draw training batches on device from seed, epoch and step.

The sampler keeps no state, and nothing is as long as the data but the interactions. The order of an
epoch is a keyed permutation, evaluated at the positions that a step asks for. A negative is the
r-th item that the user does not have, found by bisection. So the batch of a step does not depend on
earlier steps, on the number of devices, or on a kill in between.
"""

from dataclasses import dataclass
from typing import Any

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
    """Distinct train interactions, to be put on device.

    There are E distinct (user, item) pairs over P items.
    """

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
    """Build `Positives` from train interactions; repeated pairs count once.

    Raises:
      InputError: there are no interactions, or a user has every item, so that no negative exists.
    """
    if len(user) == 0:
        raise InputError("the train split is empty")
    seen = np.bincount(item) > 0
    pool, position = np.flatnonzero(seen), np.cumsum(seen) - 1
    pairs = distinct(user.astype(np.int64) * len(pool) + position[item])
    user, position = (x.astype(np.int32) for x in np.divmod(pairs, len(pool)))
    counts = np.bincount(user, minlength=n_users)
    if counts.max() == len(pool):
        raise InputError(
            f"user {int(counts.argmax())} has interacted with all {len(pool)} items of the train "
            "split, so there is no negative to sample; leave such users out"
        )
    arrays: dict[str, Any] = dict(  # in NumPy, to be put on device
        user=user,
        item=pool[position].astype(np.int32),
        place=position,
        start=np.append(0, np.cumsum(counts)).astype(np.int32),
        pool=pool.astype(np.int32),
        active=np.flatnonzero(counts).astype(np.int32),
    )
    return Positives(**arrays, longest=int(counts.max()))


def steps(data: Positives, batch_size: int) -> int:
    """Return the number of steps in an epoch.

    An epoch takes every interaction once; the last batch is filled up from the first.
    """
    return -(-data.user.shape[0] // batch_size)


def batch(
    key: jax.Array, step: jax.Array, data: Positives, batch_size: int, sampler: str
) -> dict[str, jax.Array]:
    """Draw the users, positives and negatives of one step.

    `interactions` takes each train interaction once an epoch, in shuffled order (MMRec, and the
    multimodal models of Elliot's forks). `users` draws a user uniformly with replacement, then one
    of their items (Elliot's own models). Negatives are uniform over the items seen in train that
    the user does not have.

    Args:
      key: the key of the epoch.
      sampler: one of `SAMPLERS`.

    Returns:
      "user", "pos" and "neg", each [B].
    """
    order_key, draw_key = jax.random.split(key)
    draw_key = jax.random.fold_in(draw_key, step)
    if sampler == "interactions":
        total = data.user.shape[0]
        position = (step * batch_size + jnp.arange(batch_size, dtype=jnp.uint32)) % total
        row = shuffle(order_key, position, total)
        user, pos = data.user[row], data.item[row]
    else:
        user_key, item_key, draw_key = jax.random.split(draw_key, 3)
        active_index = jax.random.randint(user_key, (batch_size,), 0, data.active.shape[0])
        user = data.active[active_index]
        row = jax.random.randint(
            item_key, active_index.shape, data.start[user], data.start[user + 1]
        )
        pos = data.item[row]
    return {"user": user, "pos": pos, "neg": negatives(draw_key, data, user)}


def negatives(key: jax.Array, data: Positives, user: jax.Array) -> jax.Array:
    """Draw one negative item for each user [B].

    It is uniform over the pool without the user's own items. The distribution is that of drawing
    until an item is not the user's, but with one draw: of the P - n_u items left, the r-th is at
    position r + j of the pool, where j is the number of the user's own items that come first.
    """
    start, end = data.start[user], data.start[user + 1]
    r = jax.random.randint(key, user.shape, 0, data.pool.shape[0] - (end - start))

    def before(place: jax.Array) -> jax.Array:
        return data.place.at[place].get(mode="clip") - (place - start) <= r

    j = binary_search.first(start, end, before, data.longest) - start
    return data.pool[r + j]


def shuffle(key: jax.Array, index: jax.Array, n: int) -> jax.Array:
    """Evaluate a keyed permutation of range(n) at `index`.

    It is a Feistel network on a * b values, just enough for n. The few values that fall outside
    range(n) go through the network again until they are inside, which keeps it a bijection.
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
    """Mix bits so that every input bit reaches every output bit.

    An XOR with the key and a multiplication come first, then MurmurHash3's finaliser.
    """
    x = (x ^ key) * jnp.uint32(0x9E3779B1)
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
