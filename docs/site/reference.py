"""docs/api.md: `<!-- api: mora.patch -->` becomes the object's signature and docstring; methods are named behind it,
`<!-- api: mora.MoraConfig, to_dict -->`.

Docstrings here are Google's form over Markdown's backticks, with formulas in plain letters; Sphinx reads
reStructuredText, in which `|w|`, `*` and a trailing underscore mean something else. A public name of `mora` or
`mora_kernels` that the page does not show is a warning: an error of the build.
"""

import importlib
import inspect
import re
from typing import Any

from sphinx.application import Sphinx
from sphinx.util.logging import getLogger

import mora
import mora_kernels

PAGE = "docs/api"
MARK = re.compile(r"^<!-- api: ([\w.]+)((?:, \w+)*) -->$", re.M)
SECTION = re.compile(r"\w+:$")
CODE = re.compile(r"(``.+?``|`.+?`)")
log = getLogger(__name__)


def fill(app: Sphinx, page: str, source: list[str]) -> None:
    """Put every object's directive in the place of its mark."""
    if page != PAGE:
        return
    marked = {name for name, _ in MARK.findall(source[0])}
    public = [f"{package.__name__}.{name}" for package in (mora, mora_kernels) for name in package.__all__]
    for name in public:
        if name not in marked and not name.endswith("__"):
            log.warning("%s.md: got no mark for a public name, expected <!-- api: %s -->", page, name)
    source[0] = MARK.sub(lambda mark: f"```{{eval-rst}}\n{directive(*mark.groups())}\n```\n", source[0])


def directive(name: str, members: str) -> str:
    """The directive of autodoc for one dotted name, with some of its methods."""
    module, _, member = name.rpartition(".")
    found = getattr(importlib.import_module(module), member)
    if inspect.isclass(found):
        shown = f"   :members: {members[2:]}\n" if members else ""
        return f".. autoclass:: {module}::{member}\n{shown}"
    if callable(found):
        return f".. autofunction:: {module}::{member}\n"
    keys = ", ".join(f"``{key!r}``" for key in found)
    return f".. py:data:: {name}\n   :type: {type(found).__name__}\n\n   Keys: {keys}.\n"


def from_markdown(app: Sphinx, what: str, name: str, found: Any, options: Any, lines: list[str]) -> None:
    """Rewrite a docstring's lines in place, before its sections are read."""
    written: list[str] = []
    code = section = False
    for line in lines:
        section = bool(SECTION.match(line)) or (section and (not line or line[:4].isspace()))
        begins = line[:4].isspace() and written[-1:] == [""] and not (code or section)
        code = begins or (code and (not line or line[:4].isspace()))
        if begins:
            written += ["::", ""]
        written.append(line if code else "Args:" if line == "Attributes:" else rest(line))
    lines[:] = written


def rest(line: str) -> str:
    """One line with Markdown's code as reStructuredText's, and nothing else that means something there."""
    parts = CODE.split(line)
    parts[1::2] = [f"``{part.strip('`')}``" for part in parts[1::2]]
    parts[::2] = [re.sub(r"(\*|\||_(?!\w))", r"\\\1", part) for part in parts[::2]]
    parts[::2] = [re.sub(r"\bdocs/(\w+)\.md", r":doc:`\g<0> </docs/\1>`", part) for part in parts[::2]]
    return "".join(parts)


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("source-read", fill)
    app.connect("autodoc-process-docstring", from_markdown, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
