"""How Sphinx builds the documentation: `make docs`."""

import os
import sys
from importlib.metadata import version as installed_version

# The examples are run while the gallery is built; this makes them short.
os.environ["OPTLAYERS_SMALL"] = "1"
sys.path.insert(0, os.path.dirname(__file__))  # where gallery_reset is

project = "optlayers"
author = "the optlayers authors"
project_copyright = "2026, the optlayers authors"
version = release = installed_version("optlayers")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_gallery.gen_gallery",
    "sphinx-mathjax-offline",  # formulas need no network
]
# Tables are included by the pages about benchmarks.
exclude_patterns = ["_build", "auto_examples/GALLERY_HEADER.rst", "*benchmarks_table.md"]
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# --- API pages, from docstrings -------------------------------------------------------------------
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
# A dataclass documents its fields under "Attributes"; as ivars they are not documented twice.
napoleon_use_ivar = True

# --- the gallery ----------------------------------------------------------------------------------
sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    # All of them are run, not only those called plot_*.
    "filename_pattern": r"\.py$",
    "ignore_pattern": r"(__init__\.py|/_[^/]*\.py)$",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    # Also where the script is unchanged: the library may not be.
    "run_stale_examples": True,
    # Only what a script prints and draws is shown, not the value of its last expression.
    "capture_repr": (),
    "reset_modules": ("matplotlib", "seaborn", "gallery_reset.reset"),
    "download_all_examples": False,
    "show_signature": False,
    "write_computation_times": False,
}

# --- HTML -----------------------------------------------------------------------------------------
html_theme = "furo"
html_title = f"optlayers {release}"
