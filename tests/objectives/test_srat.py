import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from lossworks.embed import FeatureSeparationLoss
from lossworks.losses import CrossEntropyLoss
from lossworks.objective import Objective
from lossworks.objectives import SRATObjective
from lossworks.perturb import FGSM, TRADES
from lossworks.testing import check_exactness
from lossworks.weights import effective_number_weights

COUNTS = torch.tensor([40.0, 10.0, 2.0], dtype=torch.float64)


@pytest.fixture
def batch(generator):
    return torch.randn(7, 4, generator=generator, dtype=torch.float64), torch.tensor([0, 0, 1, 2, 1, 0, 2])


def attacked(model, x, target, eps):
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(cross_entropy(model(leaf)[0], target, reduction="sum"), leaf)
    return x + eps * slope.sign()


def test_is_its_equation_with_an_attack_on_cross_entropy_alone(batch, wide):
    x, target = batch
    objective = SRATObjective(COUNTS, lam=0.7, tau=0.3, beta=0.9, attack=FGSM(0.1))
    logits, features = wide(attacked(wide, x, target, 0.1))
    losses = effective_number_weights(COUNTS, 0.9)[target] * cross_entropy(logits, target, reduction="none")
    wanted = losses.mean() + 0.7 * FeatureSeparationLoss(0.3)(features, target)
    value = objective(wide, x, target)
    assert_close(value, wanted)
    parameters = list(wide.parameters())
    assert_close(torch.autograd.grad(value, parameters), torch.autograd.grad(wanted, parameters))


def test_without_separation_and_weights_it_is_adversarial_training(batch):
    x, target = batch
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    plain = Objective(CrossEntropyLoss(), perturb=FGSM(0.1))(model, x, target)
    assert_close(SRATObjective(COUNTS, lam=0.0, beta=0.0, attack=FGSM(0.1))(model, x, target), plain)


def test_features_default_to_the_logits(batch):
    x, target = batch
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()

    def twice(rows):
        return (model(rows),) * 2

    objective = SRATObjective(COUNTS, attack=FGSM(0.1))
    assert_close(objective(model, x, target), objective(twice, x, target))


def test_the_model_keeps_its_mode_and_micro_batches_are_the_whole(batch, wide):
    x, target = batch
    wide.body.eval()
    objective = SRATObjective(COUNTS, attack=FGSM(0.1))
    whole = torch.autograd.grad(objective(wide, x, target), list(wide.parameters()))
    for value in objective.micro_batches(wide, [(x[:3], target[:3]), (x[3:], target[3:])]):
        value.backward()
    assert_close([parameter.grad for parameter in wide.parameters()], list(whole))
    assert not wide.body.training
    assert wide.head.training


def test_is_exact_however_it_is_split(two_ranks, three_ranks):
    counts = torch.arange(5, 0, -1, dtype=torch.float64)
    said = check_exactness(SRATObjective(counts, attack=FGSM(0.1)), [two_ranks, three_ranks])
    assert all(said[column].startswith("exact") for column in ("2 processes", "3 processes", "micro-batches", "vmap"))


def test_is_finite_under_autocast(batch, wide):
    x, target = batch
    model = wide.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = SRATObjective(COUNTS.float(), attack=FGSM(0.1))(model, x.float(), target)
    assert_close(value, SRATObjective(COUNTS.float(), attack=FGSM(0.1))(model, x.float(), target), rtol=0.05, atol=0)


def test_says_what_is_wrong(batch):
    x, target = batch
    with pytest.raises(TypeError, match="attack must be a Perturbation of the input, got TRADES"):
        SRATObjective(COUNTS, attack=TRADES())
    with pytest.raises(ValueError, match="lam must be finite and >= 0"):
        SRATObjective(COUNTS, lam=-1.0)
    with pytest.raises(ValueError, match="class_counts must be >= 0"):
        SRATObjective(-COUNTS)
    with pytest.raises(ValueError, match=r"beta must be in \[0, 1\]"):
        SRATObjective(COUNTS, beta=1.1)
    with pytest.raises(ValueError, match=r"output must be logits \(n, 3\) of the model, got \(7, 2\)"):
        SRATObjective(COUNTS)(nn.Linear(4, 2).double(), x, target)


def test_sample_weights_count_rows_and_a_row_of_weight_0_is_absent(batch, wide):
    x, target = batch
    weight = torch.tensor([1.0, 0.0, 2.0, 0.5, 1.0, 3.0, 0.0], dtype=torch.float64)
    kept = weight > 0
    objective = SRATObjective(COUNTS, lam=0.7, tau=0.3, beta=0.9, attack=FGSM(0.1))
    logits, features = wide(attacked(wide, x, target, 0.1)[kept])
    own = target[kept]
    losses = effective_number_weights(COUNTS, 0.9)[own] * cross_entropy(logits, own, reduction="none")
    losses = losses + 0.7 * FeatureSeparationLoss(0.3).per_row(features, own)
    wanted = (weight[kept] * losses).sum() / weight.sum()
    assert_close(objective(wide, x, target, sample_weight=weight), wanted)
    parts = [{"x": x[rows], "target": target[rows], "sample_weight": weight[rows]} for rows in torch.arange(7).split(3)]
    assert_close(torch.stack(list(objective.micro_batches(wide, parts))).sum(), wanted)
