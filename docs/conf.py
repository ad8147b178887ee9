"""Sphinx's configuration. ``python -m sphinx -W -b html docs site`` makes the site, which loads nothing."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

from bnrepro import __version__  # noqa: E402

project = "bnrepro"
author = "The bnrepro authors"
copyright = "the bnrepro authors, MIT licence"
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "annotated",
    "executed",
    "links",
    "mathml",
    "papers",
    "reference",
]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "attrs_inline"]
myst_heading_anchors = 3
exclude_patterns = ["_ext", "_templates", "_generated", "notebooks/*.py"]
default_role = "py:obj"
highlight_language = "text"
pygments_style = "a11y-high-contrast-light"

autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_default_options = {"show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
viewcode_line_numbers = True

PARTS = ("howto", "explanation", "papers", "notebooks", "reference", "architecture")
html_theme = "pydata_sphinx_theme"
html_title = "bnrepro"
html_static_path = ["_static", "../bnrepro/report/atlas/hints.js"]
html_js_files = [("hints.js", {"defer": "defer"})]
templates_path = ["_templates"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "logo": {"text": "bnrepro"},
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "header_links_before_dropdown": 8,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": {
        "index": [],
        "annotated/*": [],
        **{f"{part}/*": ["page-toc"] for part in PARTS},
        "results": ["page-toc"],
        "tutorial": ["page-toc"],
    },
}
html_sidebars = {"annotated/*": [], "index": [], "results": [], "tutorial": []}
