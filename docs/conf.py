"""Sphinx: Markdown pages by MyST, the reference from the docstrings, the theme Furo.

The build reads nothing from the network, so there is no intersphinx: names of other packages stay plain text.
"""

from sa_checkpoint import __version__

project = "sa_checkpoint"
author = "The sa_checkpoint developers"
project_copyright = author
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "_static", "examples"]

myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False

# `name` in a docstring: a link if it is a name of ours, else code.
default_role = "py:obj"
nitpick_ignore_regex = [
    ("py:obj", ".*"),
    ("py:.*", r"(alembic|asyncio|collections|langchain_core|langgraph|pathlib|sqlalchemy|typing)\..*"),
    ("py:class", "(Sync|Async)Bind"),
]

html_theme = "furo"
html_title = f"sa_checkpoint {version}"
html_theme_options = {"navigation_with_keys": True}
