"""The names of modalities: papers, toolboxes and files call one thing differently."""

from collections.abc import Iterable

# What each is called here, in the papers' order, and what else it is called: MMRec's layout has
# `image_feat` and `text_feat`.
ALIKE = {
    "visual": ("image", "images", "image_feat", "img", "vision", "v_feat"),
    "textual": ("text", "texts", "text_feat", "txt", "language", "t_feat"),
    "acoustic": ("audio", "audios", "audio_feat", "sound", "a_feat"),
}
KINDS = {name: kind for kind, others in ALIKE.items() for name in (kind, *others)}


def kind(name: str) -> str:
    """Return what a modality of this name is called here; an unknown name is its own kind."""
    return KINDS.get(name, name)


def ordered(names: Iterable[str]) -> list[str]:
    """Sort names as the papers list them: images, texts, sounds, then the others by name.

    The order counts: SLMRec goes from the first modality to the last, MMGCN and GRCN penalise the
    users' table of the first.
    """
    places = {kind: place for place, kind in enumerate(ALIKE)}
    return sorted(names, key=lambda name: (places.get(kind(name), len(places)), name))


def meant(name: str, names: Iterable[str]) -> str | None:
    """Return the one of `names` that `name` means: itself, or the only one of the same kind."""
    names = list(names)
    alike = [name] if name in names else [one for one in names if kind(one) == kind(name)]
    return alike[0] if len(alike) == 1 else None
