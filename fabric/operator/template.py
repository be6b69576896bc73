"""Fills in the template of `cluster.yaml`: every value between @ signs, and nothing else of the text."""

import json
import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

_WHOLE = re.compile(r'"@([a-z_]+)@"')
_PART = re.compile(r"@([a-z_]+)@")


def template_text() -> str:
    """The template as it is shipped; comments and all."""
    return (resources.files("fabric.operator") / "cluster.yaml").read_text(encoding="utf-8")


def fill_in(template: str, values: Mapping[str, Any]) -> str:
    """The template with its values: a quoted placeholder becomes the value (as JSON, which YAML reads), one inside
    other text becomes its characters.

    Raises:
        ValueError: a placeholder without a value, a value without a placeholder, or characters YAML would misread.
    """
    used: set[str] = set()

    def whole(match: re.Match[str]) -> str:
        used.add(match[1])
        return json.dumps(values[match[1]])

    def part(match: re.Match[str]) -> str:
        used.add(match[1])
        text = str(values[match[1]])
        if re.search(r"[^\w./:~=+ -]", text):
            raise ValueError(f"{match[1]} is {text!r}; use letters, digits, spaces and ./:~=+-_ only")
        return text

    try:
        filled = _PART.sub(part, _WHOLE.sub(whole, template))
    except KeyError as missing:
        raise ValueError(f"the template asks for {missing}, which is not given") from None
    if used != set(values):
        raise ValueError(f"the template has no place for {', '.join(sorted(set(values) - used))}")
    return filled
