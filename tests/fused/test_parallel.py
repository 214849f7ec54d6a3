import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.int64: 0}


@pytest.fixture(scope="module", params=[2, 3])
def ranks(request, tmp_path_factory):
    """What every rank of so many real processes got: one start serves all cases."""
    folder, script = tmp_path_factory.mktemp("ranks"), str(Path(__file__).with_name("ranks.py"))
    held = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, script, str(rank), str(request.param), str(folder)],
            env=held,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(request.param)
    ]
    try:
        said = [process.communicate(timeout=240)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert all(process.returncode == 0 for process in started), "\n".join(said)
    return [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]


def test_value_and_gradients_are_those_of_one_process(ranks):
    seen = 0
    for rank, left in enumerate(ranks):
        for case, (found, wanted) in left["pairs"].items():
            assert found.keys() == wanted.keys()
            for name, tensor in wanted.items():
                where = partial("{case}, {name} on rank {rank}: {}".format, case=case, name=name, rank=rank)
                if tensor is None:
                    assert found[name] is None, where("a gradient that nobody asked for")
                    continue
                tolerance = TOLERANCE[found[name].dtype]
                if "bfloat16" in case:
                    tolerance = TOLERANCE[torch.bfloat16]
                assert_close(found[name], tensor, atol=tolerance, rtol=tolerance, msg=where)
                seen += 1
    assert seen > 500 * len(ranks)


def test_every_rank_has_the_same_value(ranks):
    for case, (found, _) in ranks[0]["pairs"].items():
        for other in ranks[1:]:
            assert_close(other["pairs"][case][0]["value"], found["value"], atol=0, rtol=0, msg=case)


def test_all_ranks_raise_the_same_error_or_none_would_end(ranks):
    for left in ranks:
        facts = left["facts"]
        for name, word in (
            ("narrow", "weight_shard"),
            ("nan", "NaN in row"),
            ("nan, gathered", "NaN in row"),
            ("class", "target must be in [0, 5)"),
            ("loss", "OneVsRestEnsLoss does not read"),
            ("shard_sizes", "shard_sizes"),
            ("shard_sizes, a number", "shard_sizes must be a sequence of the ranks' numbers of classes, got int"),
            ("shard_sizes, of floats", "shard_sizes[0] must be an int, got float"),
            ("differentiated twice", "can't be differentiated twice"),
            ("under a transform", "keep it out of torch.compile and torch.func"),
            ("bias", "bias_shard"),
            ("chunk", "chunk"),
        ):
            assert word in facts[name], (name, facts[name])
        for name in ("narrow", "nan", "nan, gathered"):  # one rank alone is wrong
            assert facts[name] == ranks[0]["facts"][name]


def test_a_second_backward_pass_adds_the_same_gradient(ranks):
    for left in ranks:
        assert left["facts"]["twice"] < 1e-12


def test_a_number_that_all_logits_share_costs_no_digits(ranks):
    for left in ranks:
        assert left["facts"]["at an offset"] < 1e-4


def test_the_softmax_family_gathers_no_logits(ranks):
    for left in ranks:
        assert left["facts"]["gathered by the softmax family"] == []
        assert max(shape[0] for shape in left["facts"]["gathered by others"]) == 4, "more than a chunk was gathered"
