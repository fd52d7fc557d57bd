"""How Sphinx builds the site: `make docs`."""

import qsgd_jax

project = "qsgd_jax"
author = "the qsgd_jax authors"
release = version = qsgd_jax.__version__
copyright = author

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx-mathjax-offline",  # formulas without a network
]
exclude_patterns = ["_build"]
default_role = "code"  # of names between single backticks
html_theme = "furo"
html_title = "qsgd_jax"
html_static_path = []
html_show_search_summary = (
    False  # it fetches pages, which a browser refuses to one read from a disk
)

myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # records begin with tables under headings of a lower level
# Tutorials run anew in each build.
nb_execution_mode = "force"
nb_execution_timeout = 60
nb_execution_raise_on_error = True
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings say them in words
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_attr_annotations = False

# Pages are read in the repository, too, where links lead to files outside of this folder.
_INSIDE = {
    "](../experiments/records/": "](records/",
    "](../README.md)": "](index.md)",
    "](../CONTRIBUTING.md)": "](contributing.md)",
    "](../CHANGELOG.md)": "](changelog.md)",
}


def _links_inside(app, docname, source):
    for outside, inside in _INSIDE.items():
        source[0] = source[0].replace(outside, inside)


def setup(app):
    """Have pages of the repository link pages of the site."""
    app.connect("source-read", _links_inside)
