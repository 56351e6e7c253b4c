"""What the page carries within itself: numbers and texts that no script or style of the page can be broken by."""

import base64
import gzip
import hashlib
import html
import json
from typing import Any

# Only scripts whose hash stands here run, and nothing is asked of a network. 'unsafe-eval': Vega compiles its expressions. Its
# interpreter (vegaEmbed's `ast`) does without, but what drives a browser, such as Playwright, then cannot wait for the page.
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-eval' {hashes}; base-uri 'none'; form-action 'none'"
)


def element(name: str, content: str = "", **attributes: str | int | bool | None) -> str:
    """An HTML element. `content` is HTML already; attributes are any text, `class_` and `data_v` as class and data-v."""
    words = [name]
    for key, value in attributes.items():
        if value is not None and value is not False:
            key = key.rstrip("_").replace("_", "-")
            words.append(key if value is True else f'{key}="{html.escape(str(value))}"')
    return f"<{' '.join(words)}>{content}</{name}>"


def breakable(text: str) -> str:
    """Any text as HTML, that may be broken after underscores and hyphens."""
    return html.escape(text).replace("_", "_<wbr>").replace("-", "-<wbr>")


def data(value: Any) -> str:
    """JSON that may stand in a script element: nothing in it ends the element or begins a comment."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def packed(content: bytes) -> str:
    """Bytes as gzip in base64; equal content, equal text."""
    return base64.b64encode(gzip.compress(content, 9, mtime=0)).decode()


def uri(content: bytes, kind: str) -> str:
    """A file as a data URI."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def script(code: str) -> tuple[str, str]:
    """A script element, whose names are its own, and its hash for the policy."""
    code = f"(() => {{\n{code}\n}})();"
    code = f"\n{code.replace('</script', '<' + chr(92) + '/script').replace('<!--', '<' + chr(92) + '!--')}\n"
    return f"<script>{code}</script>", f"'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'"


def policy(hashes: list[str]) -> str:
    """The page's content security policy."""
    return POLICY.format(hashes=" ".join(hashes))
