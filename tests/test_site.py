"""The site builds without a warning, and every link within it leads somewhere."""

import contextlib
import io
import re
import sys
import warnings
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import mora
import mora_kernels

pytest.importorskip("furo", reason="the extra `docs` is not installed")
pytest.importorskip("accelerate")
ROOT = Path(__file__).parents[1]
NOT_READ = re.compile(r"(search|genindex)\.html$|/_static/")


class Links(HTMLParser):
    """What a page points to, and what may be pointed to in it."""

    def __init__(self, page):
        super().__init__()
        self.to, self.anchors, self.text = [], {""}, page.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.anchors |= {given.get("id"), given.get("name")}
        self.to += [given[name] for name in ("href", "src") if given.get(name) and tag != "link"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Every page of a fresh build by its path."""
    from sphinx.cmd.build import main

    out, said, modules = tmp_path_factory.mktemp("site"), io.StringIO(), {*sys.modules}
    with contextlib.ExitStack() as stack:  # in this process, which has imported what is described; nothing stays behind
        stack.enter_context(pytest.MonkeyPatch.context()).setattr(sys, "path", [*sys.path])
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # of libraries to each other
        stack.enter_context(contextlib.redirect_stdout(said))
        stack.enter_context(contextlib.redirect_stderr(said))
        code = main(["-W", "--keep-going", "-q", "-b", "html", "-c", str(ROOT / "docs" / "site"), str(ROOT), str(out)])
    for name in {*sys.modules} - modules:
        if str(ROOT / "docs" / "site") in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
    assert code == 0, said.getvalue()
    return {page: Links(page) for page in out.rglob("*.html") if not NOT_READ.search(page.as_posix())}


def test_every_link_within_the_site_leads_somewhere(site):
    broken = []
    for page, links in site.items():
        for link in links.to:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or link.startswith("data:"):
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            if not target.exists() or (target in site and unquote(parts.fragment) not in site[target].anchors):
                broken.append(f"{page.name}: {link}")
    assert not broken, broken
    assert len(site) >= 20 and sum(len(links.to) for links in site.values()) > 500


def test_pages_show_what_is_behind_their_marks(site):
    pages = {page.name: links for page, links in site.items()}
    for package in (mora, mora_kernels):
        shown = {anchor for anchor in pages["api.html"].anchors if anchor}
        missing = {f"{package.__name__}.{name}" for name in package.__all__ if not name.endswith("__")} - shown
        assert not missing
    assert "W_eff = m_c dir(W + alpha S G S^T) + m_s dir(W + alpha (A B)^T), equation (1)." in pages["api.html"].text
    assert "--checkpoint-minutes M" in pages["commands.html"].text
    assert not any(f"<!-- {kind}:" in links.text for links in pages.values() for kind in ("api", "command"))
