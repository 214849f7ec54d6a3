import subprocess
import sys

import pytest

from lossworks import weights
from lossworks.catalog import HELPS, find, papers, parts, show


def test_every_key_that_a_part_names_is_in_the_toml_and_the_other_way_round():
    named = {key for entry in parts().values() for key in entry.papers}
    assert named == set(papers())


def test_parts_speak_the_vocabulary():
    assert {term for entry in parts().values() for term in entry.helps} <= set(HELPS)


def test_every_term_of_the_vocabulary_leads_to_a_part():
    for term in HELPS:
        assert find(term), term


def test_every_part_is_found_by_its_name():
    for name in parts():
        assert find(name)[0][0].name == name


def test_a_sentence_with_two_troubles_finds_parts_for_both():
    found = find("my labels are noisy and some classes are rare", limit=6)
    terms = [term for _, terms in found for term in terms]
    assert terms.count("noisy labels") >= 2
    assert terms.count("imbalance") >= 2


def test_the_readmes_question_is_answered_by_parts_that_stand_both_troubles():
    everything = [entry.name for entry, _ in find("my labels are noisy and some classes are rare", limit=500)]
    assert {"ClassBalanced", "SmallLossWeights", "LDRLoss"} <= set(everything[:10])
    stand = [not {"noisy labels", "imbalance"} & set(show(name).warns) for name in everything]
    assert stand == sorted(stand, reverse=True)
    assert {"KLDRO", "CompositionalEMA", "CVaR", "FocalLoss"} <= set(everything[sum(stand) :])


@pytest.mark.parametrize(
    ("question", "expected", "never"),
    [
        ("labels are wrong in many rows", {"SmallLossWeights", "GeneralizedCrossEntropyLoss"}, {"KLDRO", "ZLoss"}),
        ("rare classes", {"ClassBalanced", "LogitAdjustedLoss"}, {"CrossEntropyLoss"}),
        ("I need probabilities that are calibrated", {"TemperatureScaling"}, {"HingeLoss", "ZLoss"}),
        ("the worst group must not fail", {"GroupDRO"}, set()),
        ("outliers in the target of a regression", {"HuberLoss", "TukeyBiweightLoss"}, {"SquaredLoss"}),
        ("robust to adversarial attacks", {"PGD"}, {"HuberLoss"}),
    ],
)
def test_plain_questions_have_the_answers_of_an_expert(question, expected, never):
    found = {entry.name for entry, _ in find(question, limit=20)}
    assert expected <= found
    assert not never & found


def test_a_part_warns_by_the_sentences_that_say_where_not_to_use_it():
    assert show("KLDRO").warns == ("noisy labels",)
    assert show("CrossEntropyLoss").warns == ("imbalance", "noisy labels")
    assert show("BrierLoss").warns == ("many classes",)
    assert show("LDRLoss").warns == ()
    assert not [name for name, entry in parts().items() if set(entry.warns) & set(entry.helps)]


def test_no_trouble_finds_nothing():
    assert find("zzzz qqqq") == []


def test_show_suggests_the_nearest_name():
    with pytest.raises(KeyError, match="LDRLoss"):
        show("LDRLos")
    assert show("ldrloss").name == "LDRLoss"


def test_papers_are_complete():
    for paper in papers().values():
        assert 1700 < paper.year <= 2026
        assert paper.title
        assert paper.authors
        assert paper.claim or paper.note
        assert paper.arxiv or paper.doi or paper.venue or paper.url


def test_two_parts_of_one_name_are_an_error_that_names_both(monkeypatch):
    monkeypatch.setattr(weights, "LDRLoss", weights.KLDRO, raising=False)
    monkeypatch.setattr(weights, "__all__", [*weights.__all__, "LDRLoss"])
    with pytest.raises(ValueError, match=r"LDRLoss: lossworks\.losses\.LDRLoss and lossworks\.weights\.LDRLoss"):
        parts.__wrapped__()  # past the cache


def test_papers_and_measured_claims_are_read_without_importing_a_part():
    code = (
        "import sys; from lossworks.catalog import claims, papers; print(len(papers()) > 50, len(claims()) > 30);"
        "print(*(name for name in sys.modules if name.startswith('lossworks.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    answers, loaded = done.stdout.splitlines()
    assert answers == "True True"
    assert {name.split(".")[1] for name in loaded.split()} == {"catalog", "checks"}
