"""The site: Sphinx with MyST over the project's Markdown as it lies there. `make docs` builds it into site/."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]  # this tree's packages, and the modules beside this file

from mora.version import __version__ as release  # noqa: E402, F401

# Every page of docs/ stands in one of these lists; one that stands in none is an error of the build.
NAVIGATION = {
    "Start": ["In one page <../README>", "tutorial", "demo", "audio"],
    "Guides": [
        "data",
        "training",
        "sweep",
        "diagnosis",
        "evaluation",
        "retrieval",
        "usage",
        "adapters",
        "bases",
        "your_own_model",
        "single_stream",
    ],
    "Reference": ["commands", "api", "models", "gallery"],
    "Background": [
        "design",
        "kernels",
        "savings",
        "performance",
        "../mora/tiny/MODEL_CARD",
        "../CONTRIBUTING",
        "../CHANGELOG",
    ],
}

project = "mora-kernels"
author = "the authors of mora-kernels"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "commands",
    "reference",
    "pages",
]
root_doc = "docs/README"
include_patterns = ["docs/*.md", "*.md", "mora/tiny/MODEL_CARD.md"]
exclude_patterns = [".*", "**/.*", "site", "demo", "runs", "tests", "benchmarks"]
default_role = "code"  # Markdown's backtick, in docstrings
smartquotes_action = "D"  # dashes; what is quoted is typed as it stands
suppress_warnings = ["ref.python"]  # two classes `Result`: an annotation links to neither

myst_heading_anchors = 4  # the anchors that a repository's host gives to headings: links to others are errors

autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False  # they stand in the signature
napoleon_use_rtype = False
maximum_signature_line_length = 90
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "mora-kernels"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
copybutton_exclude = ".linenos, .gp, .go"
linkcheck_anchors = False
