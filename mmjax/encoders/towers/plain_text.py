"""Text features without a network: TF-IDF and truncated SVD (LSA).

tf = 1 + ln(count), idf = ln((1 + n) / (1 + df)) + 1, rows of unit length; then the documents'
coordinates U S on the leading singular vectors, again of unit length (Deerwester et al. 1990).
"""

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
import scipy.sparse
import scipy.sparse.linalg

from mmjax.encoders.core import Fitted, Run

WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


def load(*, width: int = 128, min_df: int = 2) -> Fitted:
    """Build the encoder of at most `width` dimensions.

    There are fewer when the catalogue is small.

    Args:
      min_df: words in fewer texts than this are dropped.
    """

    def fit(texts: Sequence[str], run: Run) -> np.ndarray:
        del run  # sparse algebra on the host; under a minute or two for a million texts
        return reduce(tf_idf(texts, min_df), width)

    return Fitted(
        "text",
        fit,
        {
            "encoder": "plain_text",
            "preprocessing": f"lower-case words in at least {min_df} texts, TF-IDF",
            "layer": "truncated SVD",
            "pooling": "none, normalized",
            "min_df": min_df,
        },
    )


def words(text: str) -> list[str]:
    """Return the lower-case words of a text, compatibility forms folded.

    A word is a run of letters and digits, with inner apostrophes.
    """
    return WORD.findall(unicodedata.normalize("NFKC", text).lower())


def tf_idf(texts: Sequence[str], min_df: int) -> scipy.sparse.csr_array:
    """Compute TF-IDF rows [n, words] of unit length.

    Columns are in the alphabetical order of the words that are kept.
    """
    vocabulary: dict[str, int] = {}
    ids: list[np.ndarray] = []
    for text in texts:
        word_ids = [vocabulary.setdefault(word, len(vocabulary)) for word in words(text)]
        ids.append(np.array(word_ids, np.int32))
    lengths = np.array([len(word_ids) for word_ids in ids])
    columns = np.concatenate([*ids, np.empty(0, np.int32)])
    rows = np.repeat(np.arange(len(texts)), lengths)
    shape = (len(texts), max(1, len(vocabulary)))
    counts = scipy.sparse.coo_array((np.ones(len(columns)), (rows, columns)), shape).tocsr()
    counts.sum_duplicates()
    df = np.bincount(counts.indices, minlength=shape[1])
    alphabetical = np.array([vocabulary[word] for word in sorted(vocabulary)], int)
    kept = alphabetical[df[alphabetical] >= min_df]
    weights = counts[:, kept]
    idf = np.log((1 + len(texts)) / (1 + df[kept])) + 1
    weights.data = (1 + np.log(weights.data)) * idf[weights.indices]
    norms = np.sqrt(weights.multiply(weights).sum(axis=1))
    weights.data /= np.repeat(norms, np.diff(weights.indptr))
    return weights


def reduce(weights: scipy.sparse.csr_array, width: int) -> np.ndarray:
    """Project rows [n, words] on the leading singular vectors, [n, F].

    Rows have unit length; empty rows stay zeros. Start vector and signs are fixed, so that the same
    texts always give the same numbers.
    """
    width = min(width, *weights.shape)
    if width == 0:
        return np.zeros((weights.shape[0], 1), np.float32)
    if 2 * width >= min(weights.shape):  # svds finds few of many vectors, not most
        u, s, vt = np.linalg.svd(weights.toarray(), full_matrices=False)
    else:
        start = np.random.default_rng(0).normal(size=min(weights.shape))
        u, s, vt = scipy.sparse.linalg.svds(weights, k=width, v0=start)
    order = np.argsort(-s, kind="stable")[:width]
    u, s, vt = u[:, order], s[order], vt[order]
    largest = np.take_along_axis(vt, np.abs(vt).argmax(axis=1)[:, None], axis=1)[:, 0]
    coordinates = u * (s * np.sign(largest))
    norms = np.linalg.norm(coordinates, axis=1, keepdims=True)
    # A text that shares no word gives rounding noise, which must not become a unit row.
    return np.where(norms > 1e-6, coordinates / np.maximum(norms, 1e-6), 0).astype(np.float32)
