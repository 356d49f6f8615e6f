"""Objects that loaded definitions stand for, found again by a text in the metadata of one of their assets.

Dagster's metadata are plain values that every process can read. The object itself is known where its definitions were
loaded, for as long as they are in use.
"""

from weakref import WeakValueDictionary

import dagster as dg

_HELD: WeakValueDictionary[tuple[str, str], object] = WeakValueDictionary()


def hold(key: str, text: str, thing: object) -> dict[str, str]:
    """Metadata of an asset that stands for an object. The newest object of a key and text is the one that is found.

    The body of the asset must refer to the object, which is forgotten otherwise.
    """
    _HELD[key, text] = thing
    return {key: text}


def held(spec: dg.AssetSpec, key: str) -> object:
    """The object that the metadata of an asset stand for; None if they stand for none, or not in this process."""
    return _HELD.get((key, text_of(spec.metadata.get(key))))


def text_of(value: object) -> str:
    """A value of metadata as text; an empty text for anything else."""
    text = value.value if isinstance(value, dg.MetadataValue) else value
    return text if isinstance(text, str) else ""
