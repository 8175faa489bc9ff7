"""The navigation, put behind the landing page, so that pages hold nothing that only the site understands."""

from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.util.logging import getLogger

FRONT = '<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0; url={0}"><a href="{0}">{0}</a>\n'
log = getLogger(__name__)


def navigation(app: Sphinx, page: str, source: list[str]) -> None:
    """Add the lists of pages to the landing page."""
    if page == app.config.root_doc:
        for caption, pages in app.config.NAVIGATION.items():
            source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n" + "\n".join(pages) + "\n```\n"


def check_gallery(app: Sphinx, *_: Any) -> None:
    """Warn of an image that the gallery does not show."""
    docs = Path(app.srcdir) / "docs"
    gallery = (docs / "gallery.md").read_text(encoding="utf-8")
    for image in sorted((docs / "images").rglob("*.png")):
        name = image.relative_to(docs).as_posix()
        if f"]({name})" not in gallery:
            log.warning("docs/gallery.md: does not show %s", name)


def front(app: Sphinx, error: Exception | None) -> None:
    """Let the folder of the site open at the landing page."""
    if error is None and app.builder.name == "html":
        place = app.builder.get_target_uri(app.config.root_doc)
        (Path(app.outdir) / "index.html").write_text(FRONT.format(place), encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.add_config_value("NAVIGATION", {}, "env", dict)
    app.connect("source-read", navigation)
    app.connect("builder-inited", check_gallery)
    app.connect("build-finished", front)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
