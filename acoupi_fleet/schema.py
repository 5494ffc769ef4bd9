"""schema: what a configuration model accepts at a key, and which key a wrong one is nearest to. Touches nothing."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, RootModel

Keys = tuple[str, ...]

_LIKE_A_KEY = 0.8


def nearest(path: Keys, model: type[BaseModel]) -> str:
    """What to write instead of an unknown key: the same word elsewhere, a like word beside it or elsewhere, a like key.

    Args:
        path: The key's parts, the namespace first.
        model: The model of that namespace.
    """
    known = {".".join(found): found for found in _keys_of(model, path[:1])}
    key, word = ".".join(path), path[-1]
    words = {found[-1]: name for name, found in known.items()}
    beside = {found[-1]: name for name, found in known.items() if found[:-1] == path[:-1]}
    near = difflib.get_close_matches(key, [name for name, found in known.items() if found[-1] == word], 1, 0)
    near = near or [beside[match] for match in difflib.get_close_matches(word, beside, 1)]
    near = near or [words[match] for match in difflib.get_close_matches(word, words, 1, _LIKE_A_KEY)]
    near = near or difflib.get_close_matches(key, known, 1, _LIKE_A_KEY)
    if near:
        return f"did you mean {near[0]}?"
    depth = max(
        length for length in range(len(path)) if any(found[:length] == path[:length] for found in known.values())
    )
    around = {".".join(found[: depth + 1]) for found in known.values() if found[:depth] == path[:depth]}
    return f"known are {', '.join(sorted(around))}"


def kinds_at(model: type[BaseModel], path: Keys) -> list[Any] | None:
    """The types that a model allows at a path; None where it has no such field.

    Asked here and not left to pydantic, since a user's own model may be one that drops unknown keys without a word.
    """
    kinds: list[Any] = [model]
    for key in path:
        models = [kind for kind in kinds if _is_model(kind)]
        fields = [kind.model_fields[name] for kind in models for name in _names(kind).get(key, ())]
        if not fields:
            free = any(kind is not types.NoneType and not _is_model(kind) for kind in kinds)
            return [Any] if free or any(kind.model_config.get("extra") == "allow" for kind in models) else None
        kinds = [kind for field in fields for kind in _kinds(field.annotation)]
    return kinds


def _keys_of(model: type[BaseModel], above: Keys, outer: tuple[type[BaseModel], ...] = ()) -> Iterator[Keys]:
    if above == ("program",):
        yield "program", "class"
    for name, field in model.model_fields.items():
        inner = [kind for kind in _kinds(field.annotation) if _is_model(kind)]
        if not inner:
            yield (*above, name)
        for kind in inner:
            if kind not in outer:  # a model may hold itself
                yield from _keys_of(kind, (*above, name), (*outer, kind))


def _kinds(annotation: Any) -> Iterator[Any]:
    """The types that an annotation allows."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _kinds(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for inner in get_args(annotation):
            yield from _kinds(inner)
    else:
        yield annotation


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel) and not issubclass(kind, RootModel)


def _names(model: type[BaseModel]) -> dict[str, set[str]]:
    """What a field may be called in a configuration, and which field that is."""
    names: dict[str, set[str]] = {}
    for name, field in model.model_fields.items():
        for spelling in (name, field.alias, field.validation_alias):
            if isinstance(spelling, str):
                names.setdefault(spelling, set()).add(name)
    return names
