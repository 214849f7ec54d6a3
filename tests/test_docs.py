"""The site's pages, without a build of the site: `make docs` does that, with warnings as errors."""

import inspect
import re
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import generate
import pictures
import pytest
import torch
from conf import sphinx_gallery_conf
from mathml import mathml

from lossworks.catalog import HELPS, papers, parts
from lossworks.testing.page import contract_rows

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
MATH = "{http://www.w3.org/1998/Math/MathML}"


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return generate.pages()


def links(text: str) -> list[str]:
    """What a page links to in this repository, less code, which only looks like it."""
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    return [to for to in re.findall(r"\]\(([^)\s]+)\)", prose) if "://" not in to]


def headings(text: str) -> set[str]:
    return {generate.slug(heading) for heading in re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)}


@pytest.mark.parametrize("name", parts())
def test_a_part_has_a_page_that_renders_its_docstring_and_links_its_papers(name, pages):
    entry, page = parts()[name], pages[f"parts/{name}.md"]
    assert page.startswith(f"# {name}\n")
    assert re.search(rf"^\.\. auto(class|function):: {re.escape(entry.path)}$", page, flags=re.MULTILINE)
    for key in entry.papers:
        assert papers()[key].title in page
        assert papers()[key].arxiv in page
    assert all(f"(troubles.md#{generate.slug(term)})" in page for term in entry.helps)


@pytest.mark.parametrize("name", parts())
def test_every_equation_of_a_part_becomes_mathml(name):
    docstring = inspect.getdoc(parts()[name].part)
    blocks = re.findall(r"^\.\. math::[ \n]*((?:.+\n)(?:[ ]+.+\n)*)", docstring, flags=re.MULTILINE)
    equations = [*blocks, *re.findall(r":math:`([^`]+)`", docstring)]
    assert equations or not isinstance(parts()[name].part, type)
    for latex in equations:
        assert ElementTree.fromstring(mathml(latex)).tag == f"{MATH}math"


def test_an_equation_is_the_tree_that_it_is_meant_to_be():
    drawn = ElementTree.fromstring(mathml(r"\max_{q} \lambda \log \tfrac{1}{C}", "block"))
    below = drawn.find(f".//{MATH}munder")
    assert ["".join(child.itertext()) for child in below] == ["max", "q"]
    assert ["".join(child.itertext()) for child in drawn.find(f".//{MATH}mfrac")] == ["1", "C"]
    assert [mo.text for mo in ElementTree.fromstring(mathml(r"\big\lfloor x \big\rfloor")).iter(f"{MATH}mo")] == [
        "⌊",
        "⌋",
    ]


@pytest.mark.parametrize("latex", [r"\nosuchcommand x", r"\frac{1}{", r"x^{2"])
def test_an_equation_that_cannot_be_drawn_is_an_error_that_shows_it(latex):
    with pytest.raises(ValueError, match=re.escape(f"the equation {latex!r}")):
        mathml(latex)


def test_the_index_by_role_lists_every_part_once(pages):
    listed = re.findall(r"^- \[(\w+)\]\(\w+\.md\)", pages["parts/index.md"], flags=re.MULTILINE)
    assert sorted(listed) == sorted(parts())
    in_trees = re.findall(r"^\.\./(\w+)$", "\n".join(pages[f] for f in pages if "/roles/" in f), flags=re.MULTILINE)
    assert sorted(in_trees) == sorted(parts())


def test_the_index_by_trouble_lists_each_part_under_what_it_helps_with(pages):
    page = pages["parts/troubles.md"]
    for term in HELPS:
        section = page.partition(f"\n## {term[0].upper()}{term[1:]}\n")[2].partition("\n## ")[0]
        listed = re.findall(r"^- \[(\w+)\]", section, flags=re.MULTILINE)
        assert sorted(listed) == sorted(name for name, entry in parts().items() if term in entry.helps)


def test_the_index_by_paper_lists_each_part_under_its_papers(pages):
    for name, entry in parts().items():
        for key in entry.papers:
            assert f"[{name}]" in pages["parts/papers.md"].partition(f"\n## {key}\n")[2].partition("\n## ")[0]


def test_a_page_has_the_claim_beside_what_was_measured_and_the_row_of_exactness(pages):
    claim = generate._results()["zhu2023ldr"]
    row = next(line for line in pages["parts/LDRLoss.md"].splitlines() if "claims.md#zhu2023ldr" in line)
    assert row.index(claim["claimed"]) < row.index(claim["measured"])
    exactness = (DOCS / "exactness.md").read_text(encoding="utf-8")
    cells = re.search(r"^\| `KLDRO` \| \d+ (\|.*\|)$", exactness, flags=re.MULTILINE)[1]
    number = re.search(r"\[(\d+)\]", cells)[1]
    note = re.search(rf"^{number}\. (.+)$", exactness, flags=re.MULTILINE)[1]
    assert re.sub(r"\[\d+\]", "", cells) in re.sub(r"\[\d+\]", "", pages["parts/KLDRO.md"])
    assert f"1. {note}" in pages["parts/KLDRO.md"]


def test_a_page_has_how_many_checks_hold_the_part_and_why_others_do_not(pages):
    rows = contract_rows("HuberLoss")
    run, left = sum(row.settings > 0 for row in rows), [row for row in rows if row.reason]
    assert left
    assert run + len(left) >= len(rows)
    assert f"held to {run} checks" in pages["parts/HuberLoss.md"]
    told = [line for line in pages["parts/HuberLoss.md"].splitlines() if line.startswith("- `")]
    assert all(any(f"`{row.check}`" in line and generate.plain(row.reason) in line for line in told) for row in left)
    listed = re.findall(r"^\| \[(\w+)\]", pages["contract.md"], flags=re.MULTILINE)
    assert sorted(listed) == sorted(parts())


def test_a_page_has_the_errata_that_name_its_part_and_no_others(pages):
    errata = re.findall(r"^\*\*.*(?:\n.+)*", (DOCS / "errata.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    named = [entry for entry in errata if "`MeanAbsoluteErrorLoss`" in entry]
    assert named
    assert all(entry.splitlines()[0] in pages["parts/MeanAbsoluteErrorLoss.md"] for entry in named)
    assert "## Errata" not in pages["parts/HuberLoss.md"]


def test_no_generated_page_is_kept_by_git(pages):
    made = [f"docs/{path}" for path in (*pages, "parts/pictures/LDRLoss.svg", "examples/worst_group.rst")]
    ignored = subprocess.run(["git", "check-ignore", *made], cwd=ROOT, capture_output=True, text=True, check=True)
    assert sorted(ignored.stdout.split()) == sorted(made)


def test_links_between_pages_point_to_files_and_headings_that_exist(pages):
    kept = {path.name: path.read_text(encoding="utf-8") for path in DOCS.glob("*.md") if path.name not in pages}
    known = pages | kept
    gallery = {f"{sphinx_gallery_conf['gallery_dirs'][0]}/{path.stem}.rst" for path in (ROOT / "examples").glob("*.py")}
    broken = []
    for page, text in known.items():
        for link in links(text):
            path, _, heading = link.partition("#")
            place = (DOCS / page).parent.joinpath(path).resolve() if path else DOCS / page
            target = place.relative_to(DOCS.resolve()).as_posix()
            exists = target in known or target in gallery or place.exists()
            if not exists or (heading and heading not in headings(known.get(target, ""))):
                broken.append(f"{page}: {link}")
    assert not broken


def test_a_picture_is_the_parts_own_curve_in_the_pages_colours():
    drawn = pictures.draw(parts()["SquaredLoss"])
    assert drawn == pictures.draw(parts()["SquaredLoss"])
    assert "currentColor" in drawn
    assert "#000000" not in drawn
    assert "output less target" in drawn
    curve = re.search(r'<g id="line2d_\d+">\s*<path d="([^"]+)" clip-path[^>]*stroke: #2a7ae2', drawn)[1]
    points = torch.tensor(
        [[float(x), float(y)] for x, y in re.findall(r"[ML] (\S+) (\S+)", curve)], dtype=torch.float64
    )
    x = points[:, 0] - points[:, 0].mean()
    height = points[:, 1].max() - points[:, 1]  # an SVG's y goes down
    assert torch.allclose(height / height.max(), (x / x.max()) ** 2, atol=1e-4)


@pytest.mark.parametrize("name", ["EnsLoss", "influence_matrix", "UniformWeights"])
def test_a_part_without_a_curve_has_no_picture(name):
    assert pictures.draw(parts()[name]) is None


def test_every_drawing_is_of_a_part():
    assert {path.stem for path in (DOCS / "drawings").glob("*.py")} <= set(parts())


@pytest.mark.parametrize("path", sorted((DOCS / "drawings").glob("*.py")), ids=lambda path: path.stem)
def test_a_drawing_is_drawn_and_says_what_it_shows(path):
    drawn = pictures.draw(parts()[path.stem])
    caption = re.search(r"<figcaption>(.+)</figcaption>", drawn)[1]
    assert caption.endswith(".")
    assert "NaN" not in drawn


def test_the_reference_lists_public_names_that_are_no_parts_in_one_place(pages):
    listed = re.findall(r"^\.\. auto(?:class|function):: (\S+)$", "\n".join(pages.values()), flags=re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert {"lossworks.Objective", "lossworks.compare", "lossworks.testing.check_part"} <= set(listed)
