"""A modality with missing rows, and masks to remove more.

Every imputation starts from `Gaps`.
"""

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp

from mmjax.core.errors import InputError
from mmjax.data.dataset import Dataset
from mmjax.ops import graph


class Gaps(NamedTuple):
    """One modality of a catalogue with its present and absent rows.

    It holds what else is known of the items, too: interactions and the other modality.
    """

    dataset: Dataset
    features: np.ndarray  # [I, F] float32; absent rows are zeros
    present: np.ndarray  # [I] bool
    other: np.ndarray | None = None  # [I, G] float32, the other modality
    other_present: np.ndarray | None = None  # [I] bool

    def co_purchase(self, top_k: int) -> sp.csr_matrix:
        """Return the `top_k` items most bought with each, [I, I].

        See `graph.co_purchase`. Only the train split counts; a `top_k` above I means all items.

        Raises:
          InputError: a `top_k` below 1.
        """
        if top_k < 1:
            raise InputError(f"top_k is at least 1, not {top_k}")
        train, shape = self.dataset.train, (self.dataset.n_users, self.dataset.n_items)
        return graph.co_purchase(train.user, train.item, shape, top_k=min(top_k, shape[1]))


def mask(present: np.ndarray, rate: float, seed: int) -> np.ndarray:
    """Hide a share `rate` of the present rows at random.

    Exactly round(rate x present) rows are hidden, but never the last one. The extension of arXiv
    2408.11767 (arXiv 2602.17354) hides 10, 30, 50, 70 and 90 %, five times with the seeds 42 + n.

    Returns:
      The new presence [I].

    Raises:
      InputError: a rate outside [0, 1).
    """
    if not 0 <= rate < 1:
        raise InputError(f"the rate of rows to mask is in [0, 1), not {rate}")
    rows = np.flatnonzero(present)
    count = min(round(rate * len(rows)), max(0, len(rows) - 1))
    remaining = present.copy()
    remaining[np.random.default_rng(seed).choice(rows, count, replace=False)] = False
    return remaining
