"""Equations as MathML, converted when the site is built: a browser draws them with no script, font or network."""

import re
from xml.etree import ElementTree

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.math import wrap_displaymath
from sphinx.writers.html5 import HTML5Translator

__all__ = ["mathml", "setup"]

REWRITES = {r"\arg": r"\operatorname{arg}"}
"""Commands that the converter does not know, with commands that it knows in their place."""

NAMESPACE = "http://www.w3.org/1998/Math/MathML"


def _tags(*names: str) -> list[str]:
    return [f"{{{NAMESPACE}}}{name}" for name in names]


MI, MO, MSPACE = _tags("mi", "mo", "mspace")
ROWS = _tags("mrow", "mstyle")
UNDER = dict(zip(_tags("msub", "msup", "msubsup"), _tags("munder", "mover", "munderover"), strict=True))
SCRIPTS = {*UNDER, *UNDER.values()}
LETTERS = {*_tags("mi", "mn", "mfrac", "msqrt"), *SCRIPTS}
BARS = {"|", "‖", "∥"}
TIGHT = {*BARS, *"()[]{}⌊⌋⌈⌉⟨⟩/"}
CLOSING = {*BARS, *")]}⌋⌉⟩"}
OPERATORS = {operator: operator for operator in ":;⟺⟂⟨⟩⌊⌋⌈⌉"} | {"~": "\N{TILDE OPERATOR}"}
"""Operators that the converter writes as if they were letters."""
LINE = "―"
LINES = {"mover": "¯", "munder": "_"}
SIGNS = {"-", "\N{MINUS SIGN}", "+"}
LIMITS = {"max", "min", "sup", "inf", "lim"}

SIZED = {r"\lfloor": "⌊", r"\rfloor": "⌋", r"\lceil": "⌈", r"\rceil": "⌉", r"\{": "{", r"\}": "}"}
"""Delimiters that the converter does not convert if a size precedes them."""


def mathml(latex: str, display: str = "inline") -> str:
    """Convert the equation into a ``<math>`` element.

    Raises:
        ValueError: the equation has something that would not be drawn correctly.
    """
    known = latex
    for unknown, instead in REWRITES.items():
        known = re.sub(re.escape(unknown) + r"(?![A-Za-z])", lambda _, text=instead: text, known)
    braces = re.sub(r"\\.", "", latex)
    if braces.count("{") != braces.count("}"):
        raise ValueError(f"braces that do not match in the equation {latex!r}")
    try:
        drawn = convert(known, display=display)
    except Exception as error:
        raise ValueError(f"{error!r} in the equation {latex!r}") from error
    for written, delimiter in SIZED.items():
        drawn = drawn.replace(f">{written}</mo>", f">{delimiter}</mo>")
    left = re.findall(r"\\[A-Za-z]+|\\.", drawn)
    if left:
        raise ValueError(f"no MathML for {', '.join(sorted(set(left)))} in the equation {latex!r}")
    root = ElementTree.fromstring(drawn)
    for element in list(root.iter(MI)):
        if element.text in OPERATORS:
            element.tag, element.text = MO, OPERATORS[element.text]
    for element in list(root.iter()):
        if display == "block":
            _set_limits(element)
        _stretch_lines(element)
        _space_functions(element)
        _set_operators(element)
    ElementTree.register_namespace("", NAMESPACE)
    return ElementTree.tostring(root, encoding="unicode")


def _set_limits(element: ElementTree.Element) -> None:
    """Put the range of a maximum below it, in a displayed equation."""
    if element.tag in UNDER and element[0].text in LIMITS:
        element.tag = UNDER[element.tag]


def _stretch_lines(element: ElementTree.Element) -> None:
    """Make a line above or below as long as the expression that it belongs to."""
    for side, line in LINES.items():
        if element.tag == f"{{{NAMESPACE}}}{side}" and element[-1].text == LINE:
            element[-1].text = line
            element[-1].set("stretchy", "true")


def _space_functions(element: ElementTree.Element) -> None:
    """Put space between a function's name and the letters around it, but not before its brackets."""
    if element.tag not in ROWS:
        return
    spaced: list[ElementTree.Element] = []
    children = list(element)
    for child, after in zip(children, [*children[1:], None], strict=True):
        function = _is_function(child)
        if function and spaced and (spaced[-1].tag in LETTERS or spaced[-1].text in (")", "]")):
            spaced.append(ElementTree.Element(MSPACE, width="0.167em"))
        if child.tag in SCRIPTS and "minsize" in child[0].attrib:  # browsers forget its size
            spaced.append(child[0])
            child[0] = ElementTree.Element(ROWS[0])
        spaced.append(child)
        if function and after is not None and after.tag != MSPACE and after.text not in ("(", "["):
            spaced.append(ElementTree.Element(MSPACE, width="0.167em"))
    element[:] = spaced


def _set_operators(element: ElementTree.Element) -> None:
    """Remove the space around brackets, bars, slashes and function names, and after a sign before a number."""
    before = None
    for child in element:
        text = child.text or ""
        if child.tag == MO and (text in TIGHT or text.isalpha()):
            child.attrib.update(lspace="0", rspace="0")
            if "minsize" not in child.attrib:  # as high as a letter, unless a size is given
                child.attrib.setdefault("stretchy", "false")
        elif child.tag == MO and text in SIGNS and _begins(before):
            child.set("form", "prefix")
        if child.tag != MSPACE:
            before = child


def _begins(before: ElementTree.Element | None) -> bool:
    """Whether an expression begins here: nothing precedes it, or an operator that is not a closing bracket."""
    return before is None or (before.tag == MO and before.text not in CLOSING)


def _is_function(element: ElementTree.Element) -> bool:
    name = element[0] if element.tag in SCRIPTS and len(element) else element
    return name.tag in (MI, MO) and len(name.text or "") > 1 and name.text.isalpha()


def _visit(self: HTML5Translator, node: nodes.math | nodes.math_block) -> None:
    latex, block = node.astext(), isinstance(node, nodes.math_block)
    try:
        if block:
            drawn = "".join(f"<div>{mathml(formula, 'block')}</div>" for formula in _formulas(latex))
            self.body.append(f'<div class="equation">{drawn}</div>')
        else:
            self.body.append(mathml(latex))
    except ValueError as error:
        raise ExtensionError(f"{node.source}:{node.line}: {error}") from error
    raise nodes.SkipNode


def _formulas(latex: str) -> list[str]:
    """Divide an equation into its formulas, which are drawn side by side, or below each other on a narrow page."""
    if "\\\\" in latex or "&" in latex:
        return [latex if r"\begin" in latex else wrap_displaymath(latex, None, False).strip()]
    formulas, depth = [""], 0
    for piece in re.split(r"(\\qquad\b|(?<!\\)[{}])", latex):
        depth += (piece == "{") - (piece == "}")
        if piece == r"\qquad" and depth == 0 and r"\left" not in formulas[-1]:
            formulas.append("")
        else:
            formulas[-1] += piece
    return [formula for formula in formulas if formula.strip()]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the renderer under the name ``mathml``."""
    app.add_html_math_renderer("mathml", inline_renderers=(_visit, None), block_renderers=(_visit, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
