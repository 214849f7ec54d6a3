import importlib
import json
import re


def test_list_names_every_part_in_full(cli):
    from lossworks.catalog import parts

    result = cli("list")
    assert result.code == 0
    assert set(parts()) <= set(re.findall(r"\w+", result.out))


def test_list_prints_the_same_parts_for_people_for_scripts_and_in_quiet(cli):
    document = json.loads(cli("list", "--json").out)
    names = [part["name"] for part in document]
    assert cli("list", "--quiet").out.splitlines() == names
    assert re.findall(r"^  (\w+)", cli("list").out, re.MULTILINE) == names
    assert [part["role"] for part in document] == sorted(part["role"] for part in document)


def test_every_part_of_the_list_is_what_its_class_or_function_says(cli):
    for part in json.loads(cli("list", "--json").out):
        module, _, name = part["path"].rpartition(".")
        held = getattr(importlib.import_module(module), name)
        assert part["name"] == name
        assert part["helps"] == list(held.helps)
        assert [paper["key"] for paper in part["papers"]] == list(held.papers)
        assert held.__doc__.strip().startswith(part["summary"])
