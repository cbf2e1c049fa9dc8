"""The page at /docs: what can be asked of this server, with a command for each; it loads nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_BODIES: Mapping[str, str] = {  # of a first try
    "/v1/embeddings": '{"model": "MODEL", "input": ["a first text", "a second"]}',
    "/v1/classify": '{"model": "MODEL", "input": "a first text"}',
    "/v1/rerank": '{"model": "MODEL", "query": "what is it?", "documents": ["this", "that"]}',
    "/v1/score": '{"model": "MODEL", "text_1": "what is it?", "text_2": ["this", "that"]}',
    "/v1/ner": '{"model": "MODEL", "input": "Ada was born in London"}',
    "/v1/completions": '{"model": "MODEL", "prompt": "Once upon a time"}',
    "/v1/chat/completions": '{"model": "MODEL", "messages": [{"role": "user", "content": "Hello"}]}',
}


def render_docs(schema: Mapping[str, Any], models: Mapping[str, Sequence[str]]) -> str:
    """Return the page.

    Args:
        schema: the server's own, as OpenAPI has it.
        models: paths at which each can be asked.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("onnxopt.serve", "templates"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("docs.html.j2").render(
        models=list(models.items()), routes=list(_routes(schema, models))
    )


def _routes(schema: Mapping[str, Any], models: Mapping[str, Sequence[str]]) -> Iterator[dict[str, Any]]:
    for path, methods in schema["paths"].items():
        model = next((name for name, paths in models.items() if path in paths), "")
        for method, told in methods.items():
            body = _BODIES.get(path, "").replace("MODEL", model)
            sent = f"curl localhost:8000{path} -H 'Content-Type: application/json' \\\n  -d '{body}'"
            yield {
                "method": method.upper(),
                "path": path,
                "about": told.get("description") or told.get("summary", ""),
                "fields": list(_fields(schema, told)),
                "command": sent if body and model else "",
            }


def _fields(schema: Mapping[str, Any], told: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the fields of a route's body."""
    content = told.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    known = schema.get("components", {}).get("schemas", {})
    body = known.get(str(content.get("$ref", "")).rpartition("/")[2], {})
    for name, field in body.get("properties", {}).items():
        yield {"name": name, "kind": _kind(field), "needed": name in body.get("required", ())}


def _kind(field: Mapping[str, Any]) -> str:
    """Return the type of a field in words."""
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_kind(one) for one in field["anyOf"] if one.get("type") != "null"))
    if "enum" in field:
        return " or ".join(map(str, field["enum"]))
    if field.get("type") == "array":
        return f"list of {_kind(field.get('items', {}))}"
    return str(field.get("type") or str(field.get("$ref", "object")).rpartition("/")[2])
