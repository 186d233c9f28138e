"""A modality with gaps: what every imputation starts from, and gaps made on purpose."""

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from mmjax.core.errors import InputError
from mmjax.data.dataset import Dataset
from mmjax.ops import graph


class Gaps(NamedTuple):
    """One modality of a catalogue, who has it, and what else is known of the items."""

    dataset: Dataset
    features: np.ndarray  # [I, F] float32; absent rows are zeros
    present: np.ndarray  # [I] bool
    other: np.ndarray | None = None  # [I, G] float32, the other modality
    other_present: np.ndarray | None = None  # [I] bool

    def co_purchase(self, top_k: int) -> sp.csr_matrix:
        """The `top_k` items most bought together with each, [I, I]; see `graph.co_purchase`.

        Only the train split counts; a `top_k` above I means all items.

        Raises:
          InputError: a `top_k` below 1.
        """
        if top_k < 1:
            raise InputError(f"top_k is at least 1, not {top_k}")
        train, shape = self.dataset.train, (self.dataset.n_users, self.dataset.n_items)
        return graph.co_purchase(train.user, train.item, shape, top_k=min(top_k, shape[1]))


def mask(present: np.ndarray, rate: float, seed: int) -> np.ndarray:
    """Hides `rate` of the present rows at random: the new presence [I].

    Exactly round(rate x present) rows go, but never the last one. The extension of arXiv 2408.11767
    (arXiv 2602.17354) hides 10, 30, 50, 70 and 90 %, five times with the seeds 42 + n.

    Raises:
      InputError: a rate outside [0, 1).
    """
    if not 0 <= rate < 1:
        raise InputError(f"the rate of rows to mask is in [0, 1), not {rate}")
    rows = np.flatnonzero(present)
    count = min(round(rate * len(rows)), max(0, len(rows) - 1))
    left = present.copy()
    left[np.random.default_rng(seed).choice(rows, count, replace=False)] = False
    return left
