"""The OpenAPI description as an HTML page without scripts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem; color: #1d2733 }
h2 { font-size: 1.1rem; margin-top: 2rem; border-top: 1px solid #d5dbe1; padding-top: 1rem }
code, pre { font: 14px/1.5 ui-monospace, monospace; background: #f1f4f7; border-radius: 4px; padding: .1em .3em }
pre { padding: .6rem .8rem; overflow-x: auto }
table { border-collapse: collapse } td, th { text-align: left; padding: .15rem 1rem .15rem 0; vertical-align: top }
@media (prefers-color-scheme: dark) { body { background: #14191f; color: #dde4ea } code, pre { background: #222b34 }
  a { color: #7db5f0 } h2 { border-color: #38424d } }
"""
EXAMPLES = {
    "/predict": "curl --data-binary @some.png -H 'Content-Type: image/png' {here}/predict\n"
    "curl -F image=@a.png -F image=@b.jpg '{here}/predict?top=3'",
    "/invocations": "curl --json '{{\"inputs\": [\"'$(base64 -w0 some.png)'\"]}}' {here}/invocations",
}


def manual(schema: Mapping[str, Any], here: str) -> str:
    """Format an OpenAPI description as HTML; `here` is the server's address, for the examples."""
    parts = [
        part
        for path, ways in schema["paths"].items()
        for way, what in ways.items()
        for part in _way(path, way, what, here)
    ]
    head = "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
    title = escape(schema["info"]["title"])
    summary = escape(schema["info"].get("summary", ""))
    return (
        f"{head}<title>{title}: HTTP</title><style>{STYLE}</style><h1>{title}</h1><p>{summary} "
        "<a href='openapi.json'>openapi.json</a> is the same for programs; <a href='.'>try the model</a>.</p>"
        + "".join(parts)
    )


def _way(path: str, way: str, what: Mapping[str, Any], here: str) -> Iterator[str]:
    yield f"<h2><code>{way.upper()} {escape(path)}</code></h2><p>{escape(what.get('description', ''))}</p>"
    if body := what.get("requestBody"):
        yield f"<p>Body: {', '.join(f'<code>{escape(kind)}</code>' for kind in body['content'])}</p>"
    if parameters := what.get("parameters"):
        rows = (
            (f"?{each['name']}=", f"{each.get('description', '')} (default {each['schema'].get('default')})")
            for each in parameters
        )
        yield _table(rows)
    yield _table((status, answer["description"]) for status, answer in what["responses"].items())
    if path in EXAMPLES:
        yield f"<pre>{escape(EXAMPLES[path].format(here=here))}</pre>"


def _table(rows: Any) -> str:
    cells = "".join(f"<tr><td><code>{escape(str(left))}</code><td>{escape(str(right))}" for left, right in rows)
    return f"<table>{cells}</table>"
