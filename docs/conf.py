"""Sphinx's configuration. ``make docs`` builds the site; nothing is fetched while it does."""

from __future__ import annotations

import sys
from pathlib import Path

# the pages lie in a copy of this folder, beside what sitebuild generated
sys.path.insert(0, str(Path(__file__).parent))

import perturbgen

project = "perturbgen"
author = "The perturbgen authors"
copyright = author
version = release = perturbgen.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sitebuild.sphinx_parts"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["sitebuild", "example_package", "_extra", "**/README.md"]
# what a tutorial's run left to be looked at, at the same place of the site
html_extra_path = ["_extra"]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "fieldlist", "smartquotes"]
myst_heading_anchors = 3

# A reference that leads nowhere is a warning, and warnings are errors. Types of other packages
# would need their inventories from the network, so only our own names are looked for.
nitpicky = True
nitpick_ignore_regex = [(r"py:(class|data|obj|exc)", r"(?!perturbgen\.).*")]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 90
add_module_names = False

html_theme = "furo"
html_title = "perturbgen"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
# formulas are few and short; MathJax would be fetched by the reader's browser
pygments_style = "friendly"
