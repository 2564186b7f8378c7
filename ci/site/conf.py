"""Sphinx's settings."""

from importlib.metadata import version as version_of

project = "vdcm"
version = release = version_of("vdcm")
copyright = "the authors of vdcm"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "alabaster"
html_theme_options = {
    "description": "Virtual PCIe devices for stock QEMU, in Python",
    "fixed_sidebar": True,
    "page_width": "1150px",
    "sidebar_width": "270px",
}
html_show_sourcelink = False
html_copy_source = False
myst_heading_anchors = 4  # as a forge makes them, so that a page's links work in both places
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
# Types in signatures are told, and need not lead anywhere: many are not public.
nitpick_ignore_regex = [("py:.*", ".*")]
