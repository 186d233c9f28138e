"""Full-rank evaluation on device, in chunks of users.

Every item is scored for every user. One compiled program walks over the chunks: scores [B, I],
seen items to -inf, exact top-k, look-up of each listed item among the user's targets. Only [N, K]
lists and gains leave the device.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from mmjax.core.errors import InputError
from mmjax.evaluation import metrics
from mmjax.evaluation.protocol import Task
from mmjax.ops import binary_search
from mmjax.parallel import table_sharding

# Most scores in a chunk: 8 MiB stay in a CPU's cache, half a GiB keeps an accelerator busy.
CPU_CHUNK, ACCELERATOR_CHUNK = 1 << 21, 1 << 27
ScoreFn = Callable[[Any, dict[str, jax.Array]], jax.Array]


class Chunks(NamedTuple):
    """Task cut into C chunks of B users, on device.

    Padding users have no targets.
    """

    user: jax.Array  # [C, B]
    seen_row: jax.Array  # [C, S] row in the chunk, B for padding
    seen_item: jax.Array  # [C, S]
    target_start: jax.Array  # [C, B]
    target_end: jax.Array  # [C, B]
    target_item: jax.Array  # [targets]
    target_gain: jax.Array  # [targets]
    ideal: jax.Array  # [N, K]
    relevant: jax.Array  # [N]
    outside: jax.Array | None  # [I] bool, items that are no user's candidates


@dataclass(frozen=True)
class Ranking:
    """Per-user results of one evaluation."""

    users: np.ndarray  # [N]
    ranked: np.ndarray  # [N, K], -1 where candidates ran out
    per_user: dict[str, np.ndarray]  # metric@k -> [N]
    overall: dict[str, float]  # metric@k -> mean over users, or one number of all lists

    def rounded(self, digits: int = 6) -> dict[str, float]:
        return {name: round(value, digits) for name, value in self.overall.items()}


def chunk(task: Task, n_items: int, *, multiple: int = 1, scores: int = CPU_CHUNK) -> Chunks:
    """Cut a task into chunks of about `scores` scores.

    A chunk has B users, a multiple of `multiple`.
    """
    n = len(task.users)
    size = max(1, min(n, scores // n_items))
    size = -(-size // multiple) * multiple
    count = -(-n // size)

    def cut(array: np.ndarray, fill: int) -> np.ndarray:
        return np.append(array, np.full(count * size - n, fill, array.dtype)).reshape(count, size)

    start = np.append(task.seen.start, np.full(count * size - n, task.seen.start[-1], np.int32))
    bounds = start[np.arange(count + 1) * size]
    width = max(1, int(np.diff(bounds).max()))
    rows = np.full((count, width), size, np.int32)
    items = np.zeros((count, width), np.int32)
    for c, (low, high) in enumerate(itertools.pairwise(bounds)):
        lengths = np.diff(start[c * size : (c + 1) * size + 1])
        rows[c, : high - low] = np.repeat(np.arange(size, dtype=np.int32), lengths)
        items[c, : high - low] = task.seen.item[low:high]
    arrays: dict[str, Any] = dict(  # in NumPy, to be put on device
        user=cut(task.users, task.users[0]),
        seen_row=rows,
        seen_item=items,
        target_start=cut(task.target.start[:-1], 0),
        target_end=cut(task.target.start[1:], 0),
        target_item=task.target.item,
        target_gain=task.gain,
        ideal=task.ideal,
        relevant=task.relevant,
        outside=task.outside,
    )
    return Chunks(**arrays)


def rank(
    scores: ScoreFn,
    tables: Any,
    chunks: Chunks,
    cutoffs: Sequence[int],
    *,
    map_capped: bool = False,
    constrain: Callable[[jax.Array], jax.Array] = lambda x: x,
) -> dict[str, Any]:
    """Compute lists, gains and per-user accuracy; the traced evaluation body.

    Returns:
      `ranked` [N, K] item ids, -1 beyond the candidates; `hit` [N, K]; `finite`, False when a score
      was NaN or infinite; `per_user` {metric@k: [N]}.
    """
    n, longest = chunks.ideal.shape

    def one(part: tuple) -> tuple[jax.Array, jax.Array, jax.Array]:
        user, seen_row, seen_item, start, end = part
        raw = constrain(scores(tables, {"user": user}))  # [B, I]
        finite = jnp.isfinite(raw.sum())  # a sum is vectorised, isfinite of each score is not
        candidates = raw.at[seen_row, seen_item].set(-jnp.inf, mode="drop")
        if chunks.outside is not None:
            candidates = jnp.where(chunks.outside[None], -jnp.inf, candidates)
        value, item = top_k(candidates, longest)
        position = find(chunks.target_item, start, end, item)
        gain = jnp.where(position >= 0, chunks.target_gain.at[position].get(mode="clip"), 0.0)
        out = value == -jnp.inf
        return jnp.where(out, -1, item), jnp.where(out, 0.0, gain), finite

    parts = (*chunks[:3], chunks.target_start, chunks.target_end)
    ranked, gain, finite = jax.lax.map(one, parts)
    ranked, gain = (x.reshape(-1, longest)[:n] for x in (ranked, gain))
    per_user = metrics.accuracy(gain, chunks.ideal, chunks.relevant, cutoffs, map_capped=map_capped)
    return {"ranked": ranked, "hit": gain > 0, "finite": finite.all(), "per_user": per_user}


def top_k(scores: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Select the exact top-k of each row; ties to the lower index.

    Where a row has fewer than k columns the rest is -inf. Where the mesh splits items over `model`,
    each device sorts its own columns, and an all-gather moves only k of each. Selecting blocks by
    their maxima first was measured on CPU: scores and top-k took 2 to 18 % less in sum, not worth
    its code.

    Args:
      scores: [B, I].

    Returns:
      Values and indices [B, k].
    """
    mesh = table_sharding.current_mesh()
    if mesh is None or mesh.shape["model"] == 1 or scores.shape[0] % mesh.shape["data"]:
        return _top_k(scores, k)
    n_shards = mesh.shape["model"]
    missing = ((0, 0), (0, -scores.shape[1] % n_shards))
    scores = jnp.pad(scores, missing, constant_values=-jnp.inf)

    def own(scores: jax.Array) -> tuple[jax.Array, jax.Array]:
        value, index = _top_k(scores, k)
        index += jax.lax.axis_index("model") * scores.shape[1]
        value, index = (jax.lax.all_gather(x, "model", axis=1, tiled=True) for x in (value, index))
        value, which = jax.lax.top_k(value, k)
        return value, jnp.take_along_axis(index, which, axis=1)

    split, lists = PartitionSpec("data", "model"), PartitionSpec("data")
    return table_sharding.on_each_device(own, mesh, split, (lists, lists))(scores)


def _top_k(scores: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    value, index = jax.lax.top_k(scores, min(k, scores.shape[1]))
    missing = ((0, 0), (0, k - value.shape[1]))
    return jnp.pad(value, missing, constant_values=-jnp.inf), jnp.pad(index, missing)


def find(items: jax.Array, start: jax.Array, end: jax.Array, wanted: jax.Array) -> jax.Array:
    """Return positions in `items` of wanted items [B, K], else -1.

    A row looks in its range items[start:end], which is ascending.
    """
    low, high = (jnp.broadcast_to(x[:, None], wanted.shape) for x in (start, end))
    position = binary_search.first(
        low, high, lambda at: items.at[at].get(mode="clip") < wanted, items.shape[0]
    )
    matches = (position < high) & (items.at[position].get(mode="clip") == wanted)
    return jnp.where(matches, position, -1)


def summarise(
    result: dict[str, Any],
    task: Task,
    *,
    popularity: np.ndarray,
    n_users: int,
    cutoffs: Sequence[int],
) -> Ranking:
    """Summarise an evaluation on the host.

    Means are in float64 over users. The composition of the lists is computed at `cutoffs` (the
    accuracy exists for all cutoffs already).

    Raises:
      InputError: the scores held NaN or infinite values.
    """
    if not result["finite"]:
        raise InputError("the recommender's scores are not finite; lower the learning rate")
    names = sorted(result["per_user"], key=metrics.order)
    per_user = {name: np.asarray(result["per_user"][name], np.float64) for name in names}
    beyond = metrics.beyond_accuracy(result["ranked"], result["hit"], popularity, n_users, cutoffs)
    per_user |= {k: v for k, v in beyond.items() if isinstance(v, np.ndarray)}
    overall = {k: float(v.mean()) for k, v in per_user.items()}
    overall |= {k: v for k, v in beyond.items() if not isinstance(v, np.ndarray)}
    return Ranking(task.users, np.asarray(result["ranked"]), per_user, overall)
