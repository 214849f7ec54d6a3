"""A comparison of data whose every name is hostile, its report opened in a browser."""

import re

import numpy as np
import polars as pl
import pytest

import lossworks as lw
from lossworks.comparison import Training
from lossworks.losses import CrossEntropyLoss, FocalLoss, LogisticLoss

OWN = "document.title='owned';document.body.dataset.owned=1"
ATTACKS = {
    "script": f"<script>{OWN}</script>",
    "closes": f"</script></style></title></td></svg><script>{OWN}</script>",
    "handler": f'"\'><img src=x onerror="{OWN}">',
    "attribute": f'" autofocus onfocus="{OWN}" onpointerover="{OWN}" x="',
    "address": f'<a href="javascript:{OWN}">javascript:{OWN}</a>',
    "svg": f'<svg onload="{OWN}"><animate onbegin="{OWN}"></svg>',
    "frame": "<iframe src=\"data:text/html,<script>parent.document.title='owned'</script>\"></iframe>",
    "remote": "<link rel=stylesheet href=http://127.0.0.1:9/x><img src=//127.0.0.1:9/y>",
    "separators": f"a\u2028{OWN}\u2029//\u0085<!--<script>",
    "template": "{{ 7 * 7 }}{% raw %}${7*7}<!--# -->&lt;b&gt;&#39;",
    "base": "<base href=http://127.0.0.1:9/><meta http-equiv=refresh content='0;url=http://127.0.0.1:9/'>",
    "style": "</style><style>*{background:url(http://127.0.0.1:9/z)}</style>",
}
ROWS = 90
QUICK = Training(batch_size=16, max_steps=20, eval_every=10)


def hostile_table(classes):
    random = np.random.default_rng(0)
    label = np.arange(ROWS) % len(classes)
    return pl.DataFrame(
        {
            ATTACKS["script"]: random.normal(size=ROWS) + label,
            ATTACKS["handler"]: random.choice([ATTACKS["closes"], ATTACKS["svg"], ATTACKS["address"]], ROWS).tolist(),
            ATTACKS["separators"]: pl.Series(random.normal(size=ROWS)).set(pl.Series(label) == 1, None),
            ATTACKS["base"]: np.where(random.random(ROWS) < 0.5, ATTACKS["frame"], ATTACKS["remote"]),
            ATTACKS["template"]: [classes[k] for k in label],
        }
    )


@pytest.fixture(scope="module", params=["two", "many"])
def hostile_run(request, tmp_path_factory):
    classes = [ATTACKS["closes"], ATTACKS["attribute"], ATTACKS["script"]][: 2 if request.param == "two" else 3]
    folder = tmp_path_factory.mktemp("hostile") / "<script>document.title='owned'<x>\"'&"
    folder.mkdir()
    path = folder / f'{ATTACKS["remote"].replace("/", "_")}" onload=x <script>.parquet'
    table = hostile_table(classes)
    table.write_parquet(path)
    objectives = {ATTACKS["script"]: FocalLoss(), ATTACKS["handler"]: CrossEntropyLoss(label_smoothing=0.1)}
    if request.param == "two":
        objectives[ATTACKS["attribute"]] = LogisticLoss()
    lw.compare(
        path,
        ATTACKS["template"],
        objectives=objectives,
        group=ATTACKS["base"],
        folds=2,
        repeats=1,
        model="linear",
        training=QUICK,
        out=folder / "run",
    )
    return folder / "run", path, classes, list(objectives)


def plain(text):
    """The text as a page shows it, without where its lines may break."""
    return re.sub(r"\s+", "", text)


@pytest.mark.browser
def test_a_report_of_hostile_names_shows_them_and_does_nothing_else(hostile_run, open_page):
    folder, path, classes, objectives = hostile_run
    page, seen = open_page(folder / "report.html")
    for element in page.locator("[data-tip]").all()[:40]:
        element.dispatch_event("pointerover")
    for button in page.locator("button").all():
        button.dispatch_event("click")
    page.wait_for_timeout(100)
    assert seen == []
    assert page.title().startswith(ATTACKS["template"].split("&")[0][:10])
    assert "owned" not in page.title()
    assert page.evaluate("document.body.dataset.owned === undefined")
    for tag, most in (("script", 1), ("img", 0), ("iframe", 0), ("base", 0), ("a", 0), ("link", 1), ("style", 1)):
        assert page.locator(tag).count() == most, tag
    handlers = "[...document.querySelectorAll('*')].flatMap(e => e.getAttributeNames()).filter(n => n.startsWith('on'))"
    assert page.evaluate(handlers) == []
    shown = plain(page.evaluate("document.documentElement.textContent"))
    for name in (*classes, *objectives, ATTACKS["template"], path.stem, folder.as_posix()):
        assert plain(name) in shown, name


@pytest.mark.browser
def test_without_its_policy_the_report_still_runs_nothing(hostile_run, open_page, tmp_path):
    source = (hostile_run[0] / "report.html").read_text(encoding="utf-8")
    bare = tmp_path / "bare.html"
    bare.write_text(re.sub("<meta http-equiv=.Content[^>]*>", "", source), encoding="utf-8")
    page, seen = open_page(bare)
    page.wait_for_timeout(100)
    assert seen == []
    assert "owned" not in page.title()
    assert page.evaluate("document.body.dataset.owned === undefined")


@pytest.mark.browser
def test_the_page_would_show_an_attack_that_works(open_page, tmp_path):
    path = tmp_path / "attacked.html"
    path.write_text(f"<!doctype html><body>{ATTACKS['handler']}{ATTACKS['script']}{ATTACKS['remote']}</body>")
    page, seen = open_page(path)
    page.wait_for_timeout(100)
    assert page.title() == "owned"
    assert seen


def test_names_of_files_that_are_no_text_are_replaced(tmp_path):
    import dataclasses
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).parent))
    import fixture

    from lossworks.report import render

    shown = render(dataclasses.replace(fixture.multiclass(), data_name="caf\udce9"))
    assert "caf?" in shown
    shown.encode("utf-8")
