"""The documentation: ``make docs`` builds it, and a warning is an error."""

import cwgnc_jax

project = "cwgnc_jax"
copyright = author = "the authors of cwgnc_jax"
version = release = cwgnc_jax.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx-mathjax-offline",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"cwgnc_jax {version}"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
napoleon_google_docstring = True
napoleon_numpy_docstring = False
autodoc_typehints = "none"
autodoc_member_order = "bysource"
