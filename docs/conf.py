"""Sphinx's settings; `python -m docs.build` runs it."""
import sys
from importlib.metadata import distribution
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import minigrad

project = "minigrad + gpt2"
author = "the minigrad + gpt2 authors"
version = release = minigrad.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "docs.extension"]
root_doc = "index"
exclude_patterns = ["examples", "results", "_build"]
nitpicky = False

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
myst_dmath_double_inline = True

# one file of MathJax, which draws formulas as SVG and so needs no fonts; from a package, for pages that open without a network
MATHJAX = distribution("sphinx-mathjax-offline").locate_file("sphinx-mathjax-offline/static/mathjax/tex-svg.js")
mathjax_path = "tex-svg.js"
mathjax3_config = {"svg": {"fontCache": "global"}, "options": {"enableMenu": False}}

autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_use_legacy_class_based = True
add_module_names = False
python_maximum_signature_line_length = 100

html_theme = "furo"
html_title = "minigrad + gpt2"
html_static_path = ["_static"]
html_css_files = ["beside.css"]
html_show_copyright = False
html_copy_source = html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}
