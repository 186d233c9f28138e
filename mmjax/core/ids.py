"""Digest of a list of ids."""

import hashlib
from collections.abc import Iterable


def hash_ids(ids: Iterable[str]) -> str:
    """Return the digest of a sequence of ids; order matters."""
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()[:32]
