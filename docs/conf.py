"""The configuration of Sphinx, which builds the site; ``generate.py`` first writes the pages that are not kept here."""

import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS))

import generate  # noqa: E402  (it stands beside this file)

import lossworks  # noqa: E402

project = "lossworks"
copyright = "the lossworks authors, Apache-2.0"  # noqa: A001  (Sphinx's name for it)
version = release = lossworks.__version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_parser", "sphinx_gallery.gen_gallery", "mathml"]
exclude_patterns = ["fuzzed.jsonl", "examples/*.ipynb", "examples/*.py", "sg_execution_times.rst"]
language = "en"
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", rf"(.*\b)?{package}\b.*")
    for package in (
        "torch",
        "c10d",
        "datetime",
        "numpy",
        "np",
        "collections",
        "jaxtyping",
        "pathlib",
        "polars",
        "pl",
        "sklearn",
    )
]
"""References to names of other packages are not checked, because their inventories would need the network."""
nitpick_ignore_regex += [
    ("py:data", ".*"),
    ("py:mod", r"lossworks\..*"),
    ("py:class", r"lossworks\.[a-z_]+\.[a-z_]+\..*"),
]
"""References to what the reference does not list are not checked: constants, and modules within the packages."""

html_theme = "furo"
html_title = "lossworks"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sourcelink = False
templates_path: list[str] = []

myst_enable_extensions = ["attrs_block"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = [("Buffers", "params_style"), ("Class attributes", "attributes"), "Shape"]
maximum_signature_line_length = 88
add_function_parentheses = True
python_use_unqualified_type_names = True

sphinx_gallery_conf = {
    "examples_dirs": ["../examples"],
    "gallery_dirs": ["examples"],
    "filename_pattern": r"worst_group",
    "reset_argv": "generate.example_arguments",
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "min_reported_time": 1e9,
    "write_computation_times": False,
    "plot_gallery": "True",
    "abort_on_example_error": True,
}


def _write_pages(app: Sphinx) -> None:
    generate.write(DOCS)


def _prepare(app: Sphinx, what: str, name: str, part: Any, options: Any, lines: list[str]) -> None:
    """Remove the line of papers, which have a section of their own, and insert the picture before the arguments."""
    lines[:] = [line for line in lines if not line.startswith("Papers:")]
    picture = DOCS / "parts" / "pictures" / f"{name.rsplit('.', 1)[-1]}.svg"
    if what in ("class", "function") and app.env.docname.startswith("parts/") and picture.exists():
        heads = [number for number, line in enumerate(lines) if re.fullmatch(r"[A-Z][a-z ]+:", line)]
        place = min(heads, default=len(lines))
        lines[place:place] = [".. raw:: html", f"   :file: {picture}", ""]


def _skip(app: Sphinx, what: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    """Skip members that another package describes, and on a part's page the class attributes of its role."""
    described = callable(member) or isinstance(member, property)
    elsewhere = described and (getattr(member, "__module__", None) or "lossworks").startswith("sklearn")
    return True if elsewhere or (app.env.docname.startswith("parts/") and not described) else None


def _resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement) -> Any:
    """Resolve a reference to a public name's page, also if it gives the name's file or leaves out its folder."""
    if node.get("refdomain") != "py":
        return None
    domain = env.domains["py"]
    for ending in _endings(node):
        homes = [name for name in domain.data["objects"] if f".{name}".endswith(f".{ending}")]
        homes = [name for name in homes if name.count(".") == min(home.count(".") for home in homes)]
        if len(homes) == 1:
            return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", homes[0], node, content)
    return None


def _endings(node: pending_xref) -> list[str]:
    """The possible endings of the full name that a reference means: an own or inherited member, or a public name."""
    target = node["reftarget"].removeprefix("lossworks.")
    owner = getattr(sys.modules.get(node.get("py:module") or ""), node.get("py:class") or "", None)
    inherited = [f"{base.__name__}.{target}" for base in owner.__mro__] if isinstance(owner, type) else []
    return [*inherited, ".".join(target.split(".")[-2:]), target.split(".")[-1]]


def _collapse(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """Open the navigation at the current page only, because a tree of all parts on every page is slow and long."""
    toctree = context["toctree"]
    context["toctree"] = lambda **options: toctree(**{**options, "collapse": True})


def setup(app: Sphinx) -> None:
    """Connect the functions above to Sphinx."""
    app.connect("html-page-context", _collapse, priority=100)
    app.connect("builder-inited", _write_pages, priority=100)
    app.connect("autodoc-process-docstring", _prepare, priority=100)
    app.connect("autodoc-skip-member", _skip)
    app.connect("missing-reference", _resolve)
