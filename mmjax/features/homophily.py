"""Feature homophily: similarity of features among co-purchased items (arXiv 2602.17354)."""

import math

import numpy as np
import scipy.sparse as sp

WIDTH = 64  # columns of features at a time: bounds the memory, not the result


def homophily(features: np.ndarray, present: np.ndarray, neighbours: sp.csr_matrix) -> float:
    """Compute the assortativity of features over edges, in [-1, 1].

    sum (x_i - m)(x_j - m) / sqrt(sum |x_i - m|^2 sum |x_j - m|^2), summed over the edges (i, j)
    between present items and over feature columns, with m [F] the mean over all ends of edges. This
    is Pearson's correlation where F is 1. An edge of an item with itself counts as agreement: with
    the diagonal of A included, random features score the share of such edges, not zero.

    Args:
      features: [I, F].
      present: bool [I]; edges of absent items do not count.
      neighbours: A [I, I], an edge wherever an entry is stored.

    Returns:
      The assortativity; NaN where it is undefined: there is no edge, or all features are equal.
    """
    rows = np.flatnonzero(present)
    edges = sp.csr_matrix(neighbours)[rows][:, rows].astype(np.float64)
    edges.data[:] = 1
    starts = np.asarray(edges.sum(1)).ravel()  # edges that leave each item
    ends = np.asarray(edges.sum(0)).ravel()
    if not edges.nnz:
        return math.nan
    agreement = start_square = end_square = 0.0
    for first in range(0, features.shape[1], WIDTH):
        x = features[rows, first : first + WIDTH].astype(np.float64)  # [P, WIDTH]
        x -= ((starts + ends) @ x / (2 * edges.nnz))[None]
        agreement += float((x * (edges @ x)).sum())
        squares = np.square(x).sum(1)
        start_square += float(starts @ squares)
        end_square += float(ends @ squares)
    scale = math.sqrt(start_square * end_square)
    return agreement / scale if scale else math.nan
