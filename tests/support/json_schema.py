"""Hold JSON against a JSON Schema (draft 2020-12), as far as pydantic writes it: an unknown keyword is an error."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator, Mapping
from itertools import repeat
from typing import Any

_TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
_WORDS = {"$schema", "$defs", "title", "description", "default", "readOnly", "discriminator", "format"}
_LIMITS = {
    "minimum": operator.ge,
    "maximum": operator.le,
    "exclusiveMinimum": operator.gt,
    "exclusiveMaximum": operator.lt,
}


def faults(value: Any, schema: Mapping[str, Any]) -> list[str]:
    """Return where a value is not what a schema says, in words; nothing where it is."""
    return list(_Held(schema).faults(value, schema, "$"))


class _Held:
    """A schema that values are held against: each of its keywords is a method or a set of them."""

    def __init__(self, whole: Mapping[str, Any]) -> None:
        self._whole = whole

    def faults(self, value: Any, schema: Mapping[str, Any], at: str) -> Iterator[str]:
        for keyword, said in schema.items():
            if keyword in _WORDS:
                continue
            if keyword == "$ref":
                yield from self.faults(value, self._whole["$defs"][said.removeprefix("#/$defs/")], at)
            elif keyword in {"anyOf", "oneOf"}:
                tried = [list(self.faults(value, one, at)) for one in said]
                if all(tried):
                    yield f"{at}: none of {len(said)}: {min(tried, key=len)}"
            elif keyword in {"items", "prefixItems"}:
                yield from self._of_list(value, keyword, said, at)
            elif keyword in {"properties", "additionalProperties"}:
                yield from self._of_object(value, schema, keyword, at)
            else:
                yield from _plain_faults(value, keyword, said, at)

    def _of_list(self, value: Any, keyword: str, said: Any, at: str) -> Iterator[str]:
        entries = value if isinstance(value, list) else []
        schemas = repeat(said) if keyword == "items" else said
        for place, (one, schema) in enumerate(zip(entries, schemas, strict=False)):
            yield from self.faults(one, schema, f"{at}[{place}]")

    def _of_object(self, value: Any, schema: Mapping[str, Any], keyword: str, at: str) -> Iterator[str]:
        entries = value if isinstance(value, dict) else {}
        known, others = schema.get("properties", {}), schema[keyword]
        if keyword == "properties":
            for name in known.keys() & entries.keys():
                yield from self.faults(entries[name], known[name], f"{at}.{name}")
            return
        for name in entries.keys() - known.keys():
            if others is False:
                yield f"{at}: {name} is not in the schema"
            elif others is not True:
                yield from self.faults(entries[name], others, f"{at}.{name}")


def _plain_faults(value: Any, keyword: str, said: Any, at: str) -> Iterator[str]:
    """Yield what is wrong by a keyword that looks at the value alone, not at what is in it."""
    if keyword == "type":
        wrong = not any(_is(value, kind) for kind in ([said] if isinstance(said, str) else said))
    elif keyword in {"enum", "const"}:
        wrong = value not in (said if keyword == "enum" else [said])
    elif keyword == "pattern":
        wrong = isinstance(value, str) and not re.search(said, value)
    elif keyword == "required":
        wrong = isinstance(value, dict) and not set(said) <= value.keys()
    elif keyword in {"minItems", "maxItems"}:
        wrong = isinstance(value, list) and (len(value) < said if keyword == "minItems" else len(value) > said)
    elif keyword in _LIMITS:
        wrong = _is(value, "number") and not _LIMITS[keyword](value, said)
    else:
        raise AssertionError(f"{at}: the schema says {keyword}, which is not known here")
    if wrong:
        yield f"{at}: {value!r:.80} is not what {keyword} says: {said!r:.200}"


def _is(value: Any, kind: str) -> bool:
    return isinstance(value, _TYPES[kind]) and not (isinstance(value, bool) and kind in {"integer", "number"})
