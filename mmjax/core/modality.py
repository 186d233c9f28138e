"""Canonical names of modalities.

Papers, toolboxes and files use different names for the same modality.
"""

from collections.abc import Iterable

# Canonical name -> other names, in the papers' order. MMRec's layout has `image_feat` and
# `text_feat`.
ALIKE = {
    "visual": ("image", "images", "image_feat", "img", "vision", "v_feat"),
    "textual": ("text", "texts", "text_feat", "txt", "language", "t_feat"),
    "acoustic": ("audio", "audios", "audio_feat", "sound", "a_feat"),
}
KINDS = {name: kind for kind, others in ALIKE.items() for name in (kind, *others)}


def kind(name: str) -> str:
    """Return the canonical name of a modality.

    An unknown name is its own kind.
    """
    return KINDS.get(name, name)


def ordered(names: Iterable[str]) -> list[str]:
    """Sort names as the papers list them.

    The order is images, texts, sounds, then the others by name. It counts: SLMRec goes from the
    first modality to the last, MMGCN and GRCN penalise the users' table of the first.
    """
    positions = {kind: position for position, kind in enumerate(ALIKE)}
    return sorted(names, key=lambda name: (positions.get(kind(name), len(positions)), name))


def meant(name: str, names: Iterable[str]) -> str | None:
    """Return the one of `names` that `name` means.

    It is `name` itself, or the only one of the same kind; None if there is not exactly one.
    """
    names = list(names)
    matches = [name] if name in names else [entry for entry in names if kind(entry) == kind(name)]
    return matches[0] if len(matches) == 1 else None
