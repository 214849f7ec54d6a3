import base64
import dataclasses
import hashlib
import html.parser
import math
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from lossworks.report import charts, render, text
from lossworks.report.drawn import drawn
from lossworks.report.panels import Bar, Bars, Cloud, Dot, Intervals, Key, Line, Lines, Panel

sys.path.insert(0, str(Path(__file__).parent))
import fixture

SCRIPT = "<script>document.title='owned'</script>"
BREAKOUT = "\"><img src=x onerror=\"document.title='owned'\">'</td></svg></style>{{ 7 * 7 }}"


class Document(html.parser.HTMLParser):
    """The tags with their attributes, the text, and every tag that is not closed as it was opened."""

    VOID = frozenset({"meta", "link", "br", "img", "wbr"})

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.unbalanced: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))

    def with_class(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for _, attributes in self.elements if name in (attributes.get("class") or "").split()]

    @property
    def sections(self) -> list[str | None]:
        return [attributes["id"] for tag, attributes in self.elements if tag == "section"]


def hostile():
    """Script tags wherever data or users' own names reach the report."""
    names = {objective: f"{objective} {SCRIPT}{BREAKOUT}" for objective in fixture.OBJECTIVES}
    data = fixture.multiclass()
    recall, reliability = data.panels
    changed = {
        "title": SCRIPT,
        "data_name": BREAKOUT,
        "answer": SCRIPT + BREAKOUT,
        "partial": SCRIPT,
        "reference": names[data.reference],
        "outside": names[data.outside],
        "ranking": [row | {"objective": names[row["objective"]], "setting": BREAKOUT} for row in data.ranking],
        "differences": {names[name]: rows for name, rows in data.differences.items()},
        "groups": {
            **data.groups,
            "names": [SCRIPT, BREAKOUT, SCRIPT + BREAKOUT],
            "objectives": {names[name]: values for name, values in data.groups["objectives"].items()},
        },
        "panels": [
            dataclasses.replace(
                recall,
                rows=[BREAKOUT, *[SCRIPT] * (len(fixture.CLASSES) - 1)],
                columns={names[name]: values for name, values in recall.columns.items()},
            ),
            dataclasses.replace(
                reliability,
                lede=[SCRIPT, Key("<b>up</b>", "up")],
                figures={
                    names[name]: [Line("before", [dataclasses.replace(dot, tip=BREAKOUT) for dot in lines[0].dots])]
                    for name, lines in reliability.figures.items()
                },
                notes={names[name]: [[SCRIPT], [Key(BREAKOUT, "bold")]] for name in reliability.notes},
                summaries={names[name]: BREAKOUT for name in reliability.summaries},
            ),
            Bars(
                name="occurring",
                title=SCRIPT,
                lede=[BREAKOUT],
                figures={name: [Bar(SCRIPT, 0.4, 0.5), Bar(BREAKOUT, 0.6, 0.5)] for name in names.values()},
            ),
        ],
        "curves": {names[name]: curves for name, curves in data.curves.items()},
        "findings": [{"level": "warning", "text": SCRIPT, "numbers": {SCRIPT: BREAKOUT, "column": [SCRIPT]}}],
        "candidates": [
            {"name": SCRIPT, "why": BREAKOUT, "settings": [SCRIPT, "b"], "chosen": {SCRIPT: 1}, "papers": [SCRIPT]}
        ],
        "method": [SCRIPT],
        "reuse": dict.fromkeys(("run", "predict", "python", "recipe"), SCRIPT + BREAKOUT),
        "versions": {SCRIPT: BREAKOUT},
    }
    return dataclasses.replace(data, **changed)


@pytest.fixture(scope="module")
def document():
    return Document(render(fixture.multiclass()))


@pytest.mark.parametrize("data", [fixture.multiclass(), fixture.real(), hostile()], ids=["classes", "real", "hostile"])
def test_every_tag_is_closed_as_it_was_opened(data):
    document = Document(render(data))
    assert document.unbalanced == []
    assert document.open == []


def test_rendering_is_deterministic():
    assert render(fixture.multiclass()) == render(fixture.multiclass())


def test_order_is_answer_then_evidence_then_reuse(document):
    order = "ranking differences groups recall reliability learning findings candidates method reuse"
    assert document.sections == order.split()
    first_heading = next(tag for tag, _ in document.elements if re.fullmatch("h[1-6]", tag))
    assert first_heading == "h1"
    assert document.text.index(fixture.multiclass().answer) < document.text.index("Metricbalanced accuracy")


def test_nothing_is_loaded_from_elsewhere():
    source = render(fixture.multiclass())
    for _, attributes in Document(source).elements:
        assert not attributes.keys() & {"src", "srcset", "action", "data", "xlink:href"}
        assert (attributes.get("href") or "data:,") == "data:,"
    assert "url(" not in source
    assert "@import" not in source
    assert len(source) < 500_000


def test_outside_line_is_marked_wherever_it_stands(document):
    badges = document.text.count("outside line")
    marked = document.with_class("outside")
    assert len(marked) == 3  # ranking, every metric, differences
    assert badges == 5  # and its reliability panel and its entry among the candidates
    assert len(document.with_class("winner")) == 1


def test_partial_run_says_so_before_the_answer():
    shown = Document(render(fixture.multiclass(partial="Stopped after 4 of 10 folds."))).text
    assert shown.index("This run is partial. Stopped after 4 of 10 folds.") < shown.index("LogitAdjustedLoss is better")
    assert "partial" not in Document(render(fixture.multiclass())).text


def test_real_target_has_errors_instead_of_recall_and_reliability():
    document = Document(render(fixture.real()))
    assert "residuals" in document.sections
    assert not {"recall", "reliability"} & set(document.sections)
    assert "lower is better" in document.text
    assert document.text.index("← better") < document.text.index("worse →")


def test_hostile_text_is_shown_and_never_markup():
    document = Document(render(hostile()))
    assert Counter(tag for tag, _ in document.elements)["script"] == 1
    assert not any(tag == "img" for tag, _ in document.elements)
    assert not any(name.startswith("on") for _, attributes in document.elements for name in attributes)
    assert SCRIPT in document.text
    assert "{{ 7 * 7 }}" in document.text


def test_policy_names_the_only_script():
    source = render(fixture.multiclass())
    script = re.search("<script>(.*?)</script>", source, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in source


def test_bare_and_broken_numbers_still_make_a_report():
    data = fixture.multiclass()
    missing = {key: math.nan for key in data.ranking[0] if key not in ("objective", "setting", "verdict")}
    bare = dataclasses.replace(
        data,
        ranking=[row | missing for row in data.ranking],
        differences={},
        groups=None,
        panels=[],
        curves={"LDRLoss": [[(0, math.nan)]]},
        findings=[],
        candidates=[],
        reuse=None,
    )
    document = Document(render(bare))
    assert document.sections == ["ranking", "method"]
    assert "nan" not in document.text


@pytest.mark.parametrize("objective", ["LDRLoss", fixture.OUTSIDE])
def test_one_objective_alone(objective):
    data = fixture.multiclass()
    row = next(row for row in data.ranking if row["objective"] == objective)
    assert objective in Document(render(dataclasses.replace(data, ranking=[row]))).text


def recall(rows, columns):
    return dataclasses.replace(fixture.multiclass().panels[0], rows=rows, columns=columns, counts=None)


def test_a_thousand_classes_show_those_that_differ_most():
    rng = np.random.default_rng(0)
    base = rng.uniform(0.3, 0.6, 1000)
    other = base.copy()
    other[[17, 400, 999]] += 0.3
    names = [f"class {index}" for index in range(1000)]
    columns = {fixture.REFERENCE: base.tolist(), "LDRLoss": other.tolist()}
    source = render(fixture.multiclass(panels=[recall(names, columns)]))
    for index in (17, 400, 999):
        assert f">class {index}</th>" in source
    assert "970 more are in" in Document(source).text


def test_a_groups_colour_is_its_change_and_bold_where_that_is_clear():
    score = {"mean": 0.5, "low": 0.4, "high": 0.6}
    clear = score | {"difference": -0.05, "difference_low": -0.08, "difference_high": -0.02}
    open_ = score | {"difference": 0.02, "difference_low": -0.01, "difference_high": 0.05}
    alone = score | dict.fromkeys(("difference", "difference_low", "difference_high"))
    data = fixture.multiclass()
    groups = {"metric": "accuracy", "names": ["g"], "counts": [9]}
    objectives = {data.reference: [alone], "LDRLoss": [clear], "FocalLoss": [open_]}
    for higher, tones in ((True, {"down": 1, "up": 1}), (False, {"up": 1, "down": 1})):
        shown = dataclasses.replace(
            data, groups=groups | {"objectives": objectives}, panels=[], metric_higher_is_better=higher, rope=0.01
        )
        document = Document(render(shown))
        cells = [a for a in document.with_class("up") + document.with_class("down") if "data-tip" in a]
        assert Counter(a["class"] for a in cells) == tones
        worse = next(a for a in cells if "LDRLoss" in a["data-tip"])
        assert worse["class"] == ("down" if higher else "up")
        assert worse["style"] == "--s:0.50"
        assert (
            f"change {text.number(-0.05, 3)} ({text.number(-0.08, 3)} to {text.number(-0.02, 3)})" in worse["data-tip"]
        )
        assert render(shown).count("<b>0.500</b><small>0.400 to 0.600") == 1


def test_recall_colour_is_the_change_from_the_reference():
    columns = {fixture.REFERENCE: [0.5] * 3, "LDRLoss": [0.8, 0.44, None]}
    document = Document(render(fixture.multiclass(panels=[recall(["a", "b", "c"], columns)], groups=None)))
    for tone, strength in (("up", "1.00"), ("down", "0.20")):
        cells = [cell for cell in document.with_class(tone) if "style" in cell]
        assert [cell["style"] for cell in cells] == [f"--s:{strength}"]


def test_a_panel_leaves_out_objectives_that_it_does_not_have_and_goes_if_it_has_none():
    cloud = Cloud(name="c", title="Cloud", lede=["."], pairs={"LDRLoss": [(0.0, 1.0)], "gone": [(0.0, 1.0)]}, what="w")
    found = drawn(cloud, ["FocalLoss", "LDRLoss"], "FocalLoss")
    assert [entry["name"] for entry in found["entries"]] == ["LDRLoss"]
    assert drawn(cloud, ["FocalLoss"], "FocalLoss") == {}
    assert "Cloud" not in render(fixture.multiclass(panels=[dataclasses.replace(cloud, pairs={})]))


def test_a_form_that_the_report_does_not_know_is_refused():
    with pytest.raises(TypeError, match="panel must be of a form that the report can draw, got Panel"):
        drawn(Panel(name="p", title="P", lede=["."]), [], "")


def test_dots_are_as_large_as_their_share_and_lie_on_one_scale_for_both_axes():
    line = Line("after", [Dot(0.0, 10.0, 3, "a"), Dot(10.0, 0.0, 1, "b"), Dot(5.0, 5.0, 0, "empty")])
    panel = Lines(name="l", title="L", lede=["."], figures={"x": [line]}, summaries={"x": "s"}, unit=False)
    document = Document(drawn(panel, ["x"], "x")["entries"][0]["plot"])
    circles = {circle["data-tip"]: circle for circle in document.with_class("dot")}
    assert set(circles) == {"a", "b"}
    across, up = (float(circles[name][key][:-1]) for name, key in (("b", "cx"), ("a", "cy")))
    assert across == pytest.approx(100 - up), "the same value lies as far to the right as it lies up"
    assert float(circles["a"]["r"]) == pytest.approx(2 + 6 * math.sqrt(0.75), abs=0.01)


def test_a_bar_is_as_high_as_what_was_observed_and_its_dot_as_what_was_expected():
    bars = [Bar("0", 0.4, 0.2), Bar("1", 0.1, 0.3)]
    document = Document(charts.bars(charts.Scale(0.0, 0.5, (0.0, 0.5)), "x", bars))
    heights = [bar["height"] for bar in document.with_class("observed")]
    assert heights == ["80.00%", "20.00%"]
    assert [dot["cy"] for dot in document.with_class("dot")] == ["60.00%", "40.00%"]
    assert document.with_class("observed")[0]["data-tip"].startswith("0: observed 40")


def test_quantiles_of_errors_are_nested():
    panel = Intervals(
        name="i", title="I", lede=["."], levels=[0.1, 0.5, 0.9], quantiles={"x": [-1.0, 0.0, 1.0]}, ends=("l", "h")
    )
    document = Document(drawn(panel, ["x"], "x")["rows"][0]["plot"])
    (line,) = document.with_class("quantiles")
    (dot,) = document.with_class("mean")
    assert float(line["x1"][:-1]) < float(dot["cx"][:-1]) < float(line["x2"][:-1])


def test_sort_keys_are_the_full_numbers(document):
    keys = [attributes["data-sort"] for attributes in document.with_class("mean") if "data-sort" in attributes]
    assert [float(key) for key in keys] == [mean for _, mean, _ in fixture.OBJECTIVES.values()]


class TestScale:
    def test_ends_and_middle(self):
        scale = charts.Scale.over([2.0, 4.0], margin=0)
        assert [scale.at(value) for value in (2.0, 3.0, 4.0)] == [0, 50, 100]

    @pytest.mark.parametrize("values", [[0.401, 0.452], [-3, 1e6], [0, 0], [5.0], [], [math.nan, 1e-9, 2e-9], [-7, -7]])
    def test_ticks_are_few_round_and_inside(self, values):
        scale = charts.Scale.over(values)
        assert 2 <= len(scale.ticks) <= 9
        assert all(scale.low <= tick <= scale.high for tick in scale.ticks)
        steps = np.diff(scale.ticks)
        np.testing.assert_allclose(steps, steps[0], rtol=1e-6)
        assert round(steps[0] / 10 ** math.floor(math.log10(steps[0]) + 1e-9), 6) in (1, 2, 5)

    def test_far_value_does_not_widen_the_axis_and_becomes_an_arrow(self):
        scale = charts.Scale.over([1.0, 1.1, 1.2, 1.3, 1.4, 1000.0])
        assert scale.high < 3
        assert "▶" in charts.point(scale, 1000.0, "50%", "mean", "far")
        assert "<circle" in charts.point(scale, 1.2, "50%", "mean", "near")


class TestBand:
    def test_mean_and_quantiles_of_equally_long_curves(self):
        scores = np.random.default_rng(0).normal(size=(7, 5))
        band = charts.Band.of([[(10 * step, value) for step, value in enumerate(row)] for row in scores.tolist()])
        np.testing.assert_array_equal(band.steps, [0, 10, 20, 30, 40])
        np.testing.assert_allclose(band.mean, scores.mean(0))
        np.testing.assert_allclose(band.low, np.quantile(scores, 0.1, axis=0))
        np.testing.assert_allclose(band.high, np.quantile(scores, 0.9, axis=0))

    def test_ends_where_fewer_than_half_still_train(self):
        curves = [[(step, 0.5) for step in range(length)] for length in (2, 4, 4, 9)]
        assert charts.Band.of(curves).steps.tolist() == [0, 1, 2, 3]

    def test_long_curves_are_thinned_to_their_ends(self):
        band = charts.Band.of([[(step, 0.1) for step in range(5000)]])
        assert band.steps[[0, -1]].tolist() == [0, 4999]
        assert len(band.steps) == charts.MAX_STEPS


def test_paired_dots_lie_where_their_differences_do():
    scale = charts.Scale(-0.1, 0.1, (-0.1, 0.0, 0.1))
    row = {"objective": "a", "difference": 0.05, "difference_low": None, "difference_high": None}
    entries = [{"fold": 1, "repeat": 1, "difference": -0.05}, {"fold": 1, "repeat": 2, "difference": 0.1}]
    document = Document(charts.paired(scale, row, entries, 0.01, 3))
    dots = {dot["data-tip"]: dot["cx"] for dot in document.with_class("fold")}
    assert dots == {f"fold 1, repeat 1: {text.MINUS}0.050": "25.00%", "fold 1, repeat 2: +0.100": "100.00%"}
    (region,) = document.with_class("rope")
    assert (region["x"], region["width"]) == ("45.00%", "10.00%")


def test_chances_fill_the_bar():
    bar = Document(charts.chances({"p_better": 0.5, "p_equal": 0.3, "p_worse": 0.2}))
    assert [(a["x"], a["width"]) for t, a in bar.elements if t == "rect"] == [
        ("0.00%", "50.00%"),
        ("50.00%", "30.00%"),
        ("80.00%", "20.00%"),
    ]


@pytest.mark.parametrize(
    ("shown", "wanted"),
    [
        (text.number(0.4217, 3), "0.422"),
        (text.number(-0.0003, 3, sign=True), "0.000"),
        (text.number(-0.021, 3, sign=True), f"{text.MINUS}0.021"),
        (text.number(1234567.0, 0), "1,234,567"),
        (text.number(0.01), "0.01"),
        (text.number(5.41), "5.41"),
        (text.number(1200.0), "1,200"),
        (text.number(math.inf), text.MISSING),
        (text.number(None), text.MISSING),
        (text.number(3e12), "3e+12"),
        (text.percent(0.9996), ">99\N{NO-BREAK SPACE}%"),
        (text.percent(1), "100\N{NO-BREAK SPACE}%"),
        (text.p_value(0.0002), "<0.001"),
        (text.duration(59.7), "1 min 0 s"),
        (text.duration(7.25), "7.2 s"),
        (text.duration(4000), "1 h 6 min"),
        (text.label("balanced_accuracy"), "balanced accuracy"),
        (text.label("worst_group_size"), "worst group size"),
        (text.label("rmse", {"rmse": "RMSE"}), "RMSE"),
        (text.heading("log_loss"), "Log loss"),
        (str(text.soft("AbcDef<b>")), "Abc<wbr>Def&lt;b&gt;"),
        (text.plain([1, "a", True]), "1, a, True"),
    ],
)
def test_text(shown, wanted):
    assert shown == wanted


@pytest.fixture
def open_report(open_page, tmp_path):
    def open_(data, width, scheme="light"):
        path = tmp_path / "report.html"
        path.write_text(render(data), encoding="utf-8")
        return open_page(path, width, scheme)

    return open_


@pytest.mark.browser
class TestBrowser:
    @pytest.mark.parametrize(
        "data", [fixture.multiclass(), fixture.real(), hostile()], ids=["classes", "real", "hostile"]
    )
    def test_quiet_and_within_the_screen(self, open_report, data):
        page, seen = open_report(data, 390)
        for width in (390, 768, 1280):
            page.set_viewport_size({"width": width, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert seen == []

    def test_hostile_text_does_not_run_even_without_the_policy(self, browser):
        context = browser.new_context()
        page = context.new_page()
        page.set_content(re.sub("<meta http-equiv[^>]*>", "", render(hostile())))
        assert page.title() == SCRIPT
        assert page.locator("img").count() == 0
        context.close()

    def test_sorting(self, open_report):
        page, seen = open_report(fixture.multiclass(), 1280)
        header = page.locator(".ranking th.mean")
        for order, sign in (("descending", -1), ("ascending", 1)):
            header.locator("button").click()
            assert header.get_attribute("aria-sort") == order
            shown = page.eval_on_selector_all(".ranking td.mean", "cells => cells.map(cell => +cell.dataset.sort)")
            assert shown == sorted(shown, key=lambda value: sign * value)
        page.locator(".ranking th.difference button").first.click()
        assert page.locator(".ranking tbody tr").last.locator(".name").inner_text() == fixture.REFERENCE
        assert seen == []

    def test_tooltip(self, open_report):
        page, _ = open_report(hostile(), 390)
        dot, tip = page.locator(".ranking .dot.mean").first, page.locator("#tip")
        dot.scroll_into_view_if_needed()
        page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")  # scroll hides
        dot.hover()
        tip.wait_for(state="visible")
        assert tip.inner_text() == "0.452, interval 0.424 to 0.480"
        box = tip.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390

    def test_dark_follows_the_system(self, open_report):
        colours = []
        for scheme in ("light", "dark"):
            page, _ = open_report(fixture.multiclass(), 390, scheme)
            colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
            colours.append(sum(map(int, re.findall(r"\d+", colour))))
        assert colours[0] > 700
        assert colours[1] < 100


def test_bars_lie_where_their_numbers_say():
    scale = charts.Scale(0.0, 1.0, ())
    shown = [Bar(f"b{i}", expected=0.25, observed=0.5 + 0.1 * i) for i in range(4)]
    drawn_ = str(charts.bars(scale, "reliability", shown))
    rects = [dict(re.findall(r'(x|y|width|height)="([\d.]+)%?"', tag)) for tag in re.findall(r"<rect[^>]*>", drawn_)]
    wanted = [(25 * i + 3.75, 50 - 10 * i, 17.5, 50 + 10 * i) for i in range(4)]
    for rect, numbers in zip(rects, wanted, strict=True):
        assert [float(rect[name]) for name in ("x", "y", "width", "height")] == pytest.approx(numbers, abs=0.01)
    labels = re.findall(r"<text[^>]*>(b\d+)</text>", drawn_)
    assert labels == ["b0", "b1", "b2", "b3"]


@pytest.mark.parametrize(("count", "labels"), [(6, 6), (7, 4), (12, 6), (13, 5)])
def test_at_most_six_bars_have_a_label(count, labels):
    shown = [Bar(f"b{i}", expected=0.25, observed=0.5) for i in range(count)]
    drawn_ = str(charts.bars(charts.Scale(0.0, 1.0, ()), "x", shown))
    assert len(re.findall(r"<text[^>]*>b\d+</text>", drawn_)) == labels


def test_a_scale_of_one_number_reaches_a_twentieth_of_it_to_both_sides():
    for value, low, high in ((2.0, 1.9, 2.1), (-4.0, -4.2, -3.8), (0.0, -0.05, 0.05)):
        scale = charts.Scale.over([value, value], margin=0.0)
        assert (scale.low, scale.high) == pytest.approx((low, high))


def test_both_ends_of_the_region_of_equivalence_are_on_the_axis_of_the_differences(monkeypatch):
    monkeypatch.setattr(charts, "axis", lambda scale, sign=False: scale)
    data = fixture.multiclass()
    largest = max(abs(one["difference"]) for each in data.differences.values() for one in each)
    found = sys.modules[render.__module__]._differences(dataclasses.replace(data, rope=1.2 * largest))
    assert found is not None
    assert found["axis"].holds(-1.2 * largest)
    assert found["axis"].holds(1.2 * largest)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(0, 3), (0.5, 3), (5, 3), (0.05, 3), (50, 2), (999, 1), (1000, 0), (1e7, 0), (0.005, 4), (1e-5, 6), (1e-12, 8)],
)
def test_the_largest_value_decides_the_decimals(value, wanted):
    assert text.decimals([None, value / 7, -value]) == wanted
