"""`loss_for_trainer` in the real Trainer against a plain loop over whole batches, in one process and in two.

The file is also the script that each of the two processes runs.
"""

import os
import sys
from pathlib import Path

import pytest
import torch
from common import Hard
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

import lossworks as lw
from lossworks.integrations.transformers import loss_for_trainer
from lossworks.losses import CrossEntropyLoss, FocalLoss
from lossworks.penalties import WeightMagnitudePenalty
from lossworks.perturb import GaussianNoise
from lossworks.weights import KLDRO, ClassBalanced, SampleWeights

VOCABULARY, SEQUENCES = 11, 20
SIZE, STEP = 3, 9  # sequences of a micro-batch and of a step: the last step has one micro-batch, of two sequences
COUNTS = torch.arange(1.0, 1 + VOCABULARY).double()


def sequences() -> list[dict[str, list[int]]]:
    """Sequences of 2 to 12 tokens, with the label of some tokens masked."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for length in torch.randint(2, 13, (SEQUENCES,), generator=generator).tolist():
        tokens = torch.randint(VOCABULARY, (length,), generator=generator)
        asked = torch.rand(length, generator=generator) < 0.8
        made.append({"input_ids": tokens.tolist(), "labels": torch.where(asked, tokens, -100).tolist()})
    return made


def first_step_unlabelled() -> list[dict[str, list[int]]]:
    rows = sequences()
    return [row | {"labels": [-100] * len(row["labels"])} for row in rows[:8]] + rows[8:]


def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    longest = max(len(row["input_ids"]) for row in rows)
    fill = {"input_ids": 0, "labels": -100}
    batch = {
        name: torch.tensor([row[name] + [value] * (longest - len(row[name])) for row in rows])
        for name, value in fill.items()
    }
    real = [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows]
    return batch | {"attention_mask": torch.tensor(real)}


def causal_model() -> nn.Module:
    """In float64 throughout: the Llama family takes its softmax and norms in float32 whatever the model's type."""
    from transformers import BioGptConfig, BioGptForCausalLM

    torch.manual_seed(0)
    config = BioGptConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        activation_dropout=0.0,
        layerdrop=0.0,
        attn_implementation="eager",
    )
    return BioGptForCausalLM(config).double()


def trainer(model, folder, loss, *, rows=None, collator=collate, **arguments):
    from transformers import Trainer, TrainingArguments

    defaults = {
        "per_device_train_batch_size": SIZE,
        "gradient_accumulation_steps": STEP // SIZE,
        "num_train_epochs": 1,
        "learning_rate": 0.3,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 1.0,
        "train_sampling_strategy": "sequential",
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": [],
        "remove_unused_columns": False,
        "disable_tqdm": True,
    }
    return Trainer(
        model,
        TrainingArguments(str(folder), **(defaults | arguments)),
        train_dataset=sequences() if rows is None else rows,
        eval_dataset=sequences(),
        data_collator=collator,
        compute_loss_func=loss,
    )


def trained(model, folder, loss, **arguments) -> torch.Tensor:
    trainer(model, folder, loss, **arguments).train()
    return flat(model)


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def whole_batches(model, risk, *, rows=None, collator=collate, size=STEP) -> torch.Tensor:
    """The truth: each step's rows in one batch, clipped and stepped as the Trainer does."""
    rows = sequences() if rows is None else rows
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for start in range(0, len(rows), size):
        batch = collator(rows[start : start + size])
        labels = batch.pop("labels")
        risk(model(**batch).logits, labels).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return flat(model)


def next_tokens(logits, labels):
    """Logits and labels of the kept tokens, by hand."""
    logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    return logits[labels != -100], labels[labels != -100]


def token_mean(logits, labels):
    return F.cross_entropy(*next_tokens(logits, labels))


def focal_mean(logits, labels):
    logits, labels = next_tokens(logits, labels)
    chosen = logits.log_softmax(1).gather(1, labels[:, None]).squeeze(1)
    return (-((1 - chosen.exp()) ** 2) * chosen).mean()


def class_balanced_mean(logits, labels):
    logits, labels = next_tokens(logits, labels)
    by_class = (1 / COUNTS) * COUNTS.sum() / VOCABULARY
    return (by_class[labels] * F.cross_entropy(logits, labels, reduction="none")).sum() / len(labels)


def hard_mean(logits, labels):
    losses = F.cross_entropy(*next_tokens(logits, labels), reduction="none")
    return (losses.detach().softmax(0) * losses).sum()


OBJECTIVES = {
    "tokens": (lambda: CrossEntropyLoss(), token_mean),
    "focal": (lambda: FocalLoss(gamma=2.0), focal_mean),
    "class weights": (lambda: lw.Objective(CrossEntropyLoss(), ClassBalanced(COUNTS)), class_balanced_mean),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_accumulated_steps_are_those_of_whole_batches(name, tmp_path):
    objective, risk = OBJECTIVES[name]
    got = trained(causal_model(), tmp_path, loss_for_trainer(objective(), shift=True))
    assert_close(got, whole_batches(causal_model(), risk), rtol=0, atol=1e-9)


def test_a_mean_of_micro_batch_means_is_another_training(tmp_path):
    def naive(outputs, labels, num_items_in_batch=None):
        return token_mean(outputs.logits, labels) / 3

    got = trained(causal_model(), tmp_path, naive)
    assert (got - whole_batches(causal_model(), token_mean)).abs().max() > 1e-3


def test_float32_too(tmp_path):
    got = trained(causal_model().float(), tmp_path, loss_for_trainer(CrossEntropyLoss(), shift=True))
    assert_close(got, whole_batches(causal_model().float(), token_mean), rtol=0, atol=1e-6)


def test_evaluations_in_between_change_nothing(tmp_path):
    made = trainer(
        causal_model(),
        tmp_path,
        loss_for_trainer(CrossEntropyLoss(), shift=True),
        eval_strategy="steps",
        eval_steps=1,
        per_device_eval_batch_size=SEQUENCES,
    )
    made.train()
    model = causal_model()
    assert_close(flat(made.model), whole_batches(model, token_mean), rtol=0, atol=1e-9)
    batch = collate(sequences())
    labels = batch.pop("labels")
    with torch.no_grad():
        assert_close(made.evaluate()["eval_loss"], token_mean(model(**batch).logits, labels).item(), rtol=0, atol=1e-6)


def test_penalties_count_by_the_share_of_the_step(tmp_path):
    model, other = causal_model(), causal_model()
    objective = lw.Objective(CrossEntropyLoss(), penalties=[WeightMagnitudePenalty(0.1)])
    got = trained(model, tmp_path, loss_for_trainer(objective, shift=True, model=model))
    wanted = whole_batches(
        other, lambda logits, labels: token_mean(logits, labels) + WeightMagnitudePenalty(0.1)(other)
    )
    assert_close(got, wanted, rtol=0, atol=1e-9)


def test_penalties_of_a_step_without_a_label():
    model = nn.Linear(3, 3)
    objective = lw.Objective(CrossEntropyLoss(), penalties=[WeightMagnitudePenalty(0.1)])
    loss, count = loss_for_trainer(objective, model=model), torch.tensor(0)
    values = [loss(model(torch.ones(2, 3)), torch.tensor([-100, -100]), count) for _ in range(2)]
    assert_close(sum(values), 0.05 * model.weight.square().sum())


def test_coupled_weights_are_exact_where_a_step_is_one_batch(tmp_path):
    loss = loss_for_trainer(lw.Objective(CrossEntropyLoss(), KLDRO()), shift=True)
    got = trained(causal_model(), tmp_path, loss, per_device_train_batch_size=STEP, gradient_accumulation_steps=1)
    assert_close(got, whole_batches(causal_model(), hard_mean), rtol=0, atol=1e-9)


@pytest.mark.parametrize("weights", [KLDRO(), Hard()], ids=["KLDRO", "Hard"])
def test_coupled_weights_refuse_to_see_a_step_in_parts(weights, tmp_path):
    loss = loss_for_trainer(lw.Objective(CrossEntropyLoss(), weights), shift=True)
    model = causal_model()
    before = flat(model)
    with pytest.raises(
        ValueError, match=rf"{type(weights).__name__} couples the rows of a step.*gradient_accumulation_steps=1"
    ):
        trained(model, tmp_path, loss)
    assert torch.equal(flat(model), before)


def test_a_second_part_of_one_step_is_seen_even_where_the_first_looked_whole():
    """Two processes that count their own labels only: half of two equal parts looks like the whole of all."""
    loss = loss_for_trainer(lw.Objective(CrossEntropyLoss(), KLDRO()))
    logits, labels = torch.zeros(2, 3), torch.tensor([0, 1])
    first, second = torch.tensor(2), torch.tensor(2)
    for step in (first, second):
        assert_close(loss(logits, labels, step), torch.tensor(3.0).log())
    with pytest.raises(ValueError, match="KLDRO couples"):
        loss(logits, labels, second)


def test_a_step_without_a_label_is_zero():
    logits = torch.zeros(2, 3, requires_grad=True)
    loss_for_trainer(CrossEntropyLoss())(logits, torch.tensor([-100, -100]), torch.tensor(0)).backward()
    assert torch.equal(logits.grad, torch.zeros(2, 3))


def classified(kind: str) -> tuple[nn.Module, list[dict[str, object]]]:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(
        vocab_size=VOCABULARY,
        num_labels={"classes": 3, "real": 1, "binary": 4}[kind],
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **sizes,
    )
    generator = torch.Generator().manual_seed(1)
    rows = []
    for row in sequences():
        tokens = row["input_ids"]
        label = {
            "classes": len(tokens) % 3 if len(tokens) % 4 else -100,
            "real": float(torch.randn((), generator=generator)),
            "binary": torch.randint(2, (4,), generator=generator).double().tolist(),
        }[kind]
        rows.append({"input_ids": tokens[:2], "labels": label})
    return BertForSequenceClassification(config).double(), rows


def collate_classified(rows):
    labels = torch.tensor([row["labels"] for row in rows])
    labels = labels.double() if labels.is_floating_point() else labels
    return {"input_ids": torch.tensor([row["input_ids"] for row in rows]), "labels": labels}


@pytest.mark.parametrize(
    ("loss", "kind", "risk"),
    [
        (lw.losses.CrossEntropyLoss, "classes", F.cross_entropy),
        (lw.losses.SquaredLoss, "real", lambda logits, labels: (logits.squeeze(-1) - labels).square().mean()),
        (lw.losses.LogisticLoss, "binary", F.binary_cross_entropy_with_logits),
    ],
)
def test_rows_that_are_samples(loss, kind, risk, tmp_path):
    model, rows = classified(kind)
    got = trained(model, tmp_path, loss_for_trainer(loss()), rows=rows, collator=collate_classified)
    wanted = whole_batches(classified(kind)[0], risk, rows=rows, collator=collate_classified)
    assert_close(got, wanted, rtol=0, atol=1e-9)


class Strange(nn.Module):
    """A causal language model that the Trainer does not know to be one."""

    def __init__(self) -> None:
        super().__init__()
        self.model = causal_model()

    def forward(self, input_ids, attention_mask):
        return {"logits": self.model(input_ids, attention_mask=attention_mask).logits}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("labels", [torch.tensor([1001.25, -3.003]), torch.tensor([257, 70_001])])
def test_labels_keep_their_digits_where_logits_have_few(dtype, labels):
    logits = torch.tensor([[1000.0], [-3.0]]).to(dtype)
    risk = loss_for_trainer(lw.losses.AbsoluteLoss())({"logits": logits}, labels, num_items_in_batch=2)
    assert_close(risk, (logits.float().squeeze(-1) - labels).abs().mean())


def test_a_trainer_that_counts_other_labels_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"counted \d+ labels .* rows.*first of each sequence"):
        trained(Strange(), tmp_path, loss_for_trainer(CrossEntropyLoss(), shift=True))


def test_and_its_advice_helps(tmp_path):
    def masked(rows):
        batch = collate(rows)
        batch["labels"][:, 0] = -100
        return batch

    got = trained(Strange(), tmp_path, loss_for_trainer(CrossEntropyLoss(), shift=True), collator=masked)
    assert_close(got, whole_batches(causal_model(), token_mean), rtol=0, atol=1e-9)


def test_a_step_cut_short_is_no_miscount():
    loss = loss_for_trainer(CrossEntropyLoss(), shift=True)
    logits, labels = torch.zeros(1, 4, 3), torch.tensor([[0, 1, 2, 1]])
    loss({"logits": logits}, labels, num_items_in_batch=torch.tensor(6))
    assert loss({"logits": logits}, labels, num_items_in_batch=torch.tensor(3)) > 0


def test_the_shift_must_be_said_and_be_so():
    from transformers.modeling_outputs import CausalLMOutputWithPast, MaskedLMOutput, TokenClassifierOutput

    logits, labels = torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2]])
    with pytest.raises(ValueError, match="give loss_for_trainer"):
        loss_for_trainer(CrossEntropyLoss())(CausalLMOutputWithPast(logits=logits), labels, 2)
    with pytest.raises(ValueError, match="shift=False, but the model gives CausalLM"):
        loss_for_trainer(CrossEntropyLoss(), shift=False)(CausalLMOutputWithPast(logits=logits), labels, 2)
    for output in (MaskedLMOutput, TokenClassifierOutput):
        with pytest.raises(ValueError, match="shift=True, but the model gives"):
            loss_for_trainer(CrossEntropyLoss(), shift=True)(output(logits=logits), labels, 2)
        assert_close(
            loss_for_trainer(CrossEntropyLoss(), shift=False)(output(logits=logits), labels, 3), torch.tensor(4.0).log()
        )
    with pytest.raises(ValueError, match="one row per token"):
        loss_for_trainer(CrossEntropyLoss(), shift=True)(logits[0], labels[0], 3)


@pytest.mark.parametrize("count", [2, torch.tensor(2), torch.tensor(2.0)])
def test_the_count_may_be_a_number_or_a_tensor(count):
    logits, labels = torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2]])
    assert_close(loss_for_trainer(CrossEntropyLoss(), shift=True)(logits, labels, count), torch.tensor(4.0).log())


@pytest.mark.parametrize(
    ("objective", "arguments", "says"),
    [
        (CrossEntropyLoss(ignore_index=0), {}, "ignore_index=-100"),
        (CrossEntropyLoss(reduction="sum"), {}, 'reduction="mean"'),
        (lw.Objective(CrossEntropyLoss(), SampleWeights(torch.ones(3))), {}, "SampleWeights needs index="),
        (lw.Objective(CrossEntropyLoss(), perturb=GaussianNoise(0.1)), {}, "GaussianNoise changes the input"),
        (lw.objectives.EMATrajectoryObjective(nn.Linear(1, 1)), {}, "EMATrajectoryObjective runs the model itself"),
        (lw.Objective(CrossEntropyLoss(), penalties=[WeightMagnitudePenalty(0.1)]), {}, "model="),
        (CrossEntropyLoss(), {"model": nn.Linear(1, 1)}, "model="),
        (lw.losses.SquaredLoss(), {"shift": True}, "shift=True is for classes"),
    ],
)
def test_what_cannot_be_exact_is_refused_at_once(objective, arguments, says):
    with pytest.raises(ValueError, match=says):
        loss_for_trainer(objective, **arguments)


def test_bad_calls_name_what_is_wrong():
    loss, logits, labels = loss_for_trainer(CrossEntropyLoss()), torch.zeros(2, 3), torch.tensor([0, 1])
    with pytest.raises(TypeError, match="an Objective or a Loss, got function"):
        loss_for_trainer(F.cross_entropy)
    with pytest.raises(ValueError, match="no labels"):
        loss(logits, None, 2)
    with pytest.raises(TypeError, match="outputs must have logits"):
        loss({"scores": logits}, labels, 2)
    with pytest.raises(ValueError, match=r"labels must have shape \(2,\)"):
        loss(logits, labels[:1], 1)
    with pytest.raises(ValueError, match="no num_items_in_batch"):
        loss(logits.requires_grad_(), labels)
    with pytest.raises(TypeError, match="labels must be a tensor, got list"):
        loss(logits, [0, 1], 2)
    for count in (-3, float("nan"), torch.tensor(-3), torch.tensor(torch.nan)):
        with pytest.raises(ValueError, match="num_items_in_batch must be finite and >= 0, got"):
            loss(logits, labels, count)
    for count in ("a", [2]):
        with pytest.raises(TypeError, match="num_items_in_batch must be a number"):
            loss(logits, labels, count)
    with pytest.raises(ValueError, match=r"num_items_in_batch must be one number, got .* \(0,\)"):
        loss(logits, labels, torch.tensor([]))
    with pytest.raises(ValueError, match="2 devices in one process"):
        loss(logits, labels, torch.full((2, 1), 2))
    assert loss(logits.detach(), labels) > 0  # an evaluation without the count: the batch's own mean


# Two processes take batches of two sequences in turn: steps of eight, eight and four with accumulation, four without.
DISTRIBUTED = {
    f"{what}{', not' if not gathered else ','} gathered": {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": steps,
        "average_tokens_across_devices": gathered,
    }
    for what, steps in (("tokens", 2), ("coupled", 1))
    for gathered in (True, False)
}


@pytest.fixture(scope="module")
def by_two_processes(tmp_path_factory, run_ranks) -> dict[str, torch.Tensor]:
    """The parameters after each case, as both processes have them."""
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(__file__, folder)
    first, second = (torch.load(folder / f"{rank}.pt") for rank in (0, 1))
    for name in first:
        assert torch.equal(first[name], second[name]), name
    return first


@pytest.mark.parametrize("name", DISTRIBUTED)
def test_two_processes_step_as_one(name, by_two_processes):
    risk, size = (hard_mean, 4) if "coupled" in name else (token_mean, 8)
    assert_close(by_two_processes[name], whole_batches(causal_model(), risk, size=size), rtol=0, atol=1e-9)


def test_two_processes_keep_the_penalties_of_a_step_without_a_label(by_two_processes):
    model = causal_model()

    def risk(logits, labels):
        price = WeightMagnitudePenalty(0.1)(model)
        return price if (labels == -100).all() else price + token_mean(logits, labels)

    wanted = whole_batches(model, risk, rows=first_step_unlabelled(), size=8)
    assert_close(by_two_processes["penalties"], wanted, rtol=0, atol=1e-9)


def test_two_processes_with_their_own_means_are_another_training(by_two_processes):
    truth = whole_batches(causal_model(), token_mean, size=8)
    assert (by_two_processes["naive"] - truth).abs().max() > 1e-3


def run_one_rank(folder: Path) -> None:
    torch.set_num_threads(1)
    done = {}
    for name, arguments in DISTRIBUTED.items():
        weights = KLDRO() if "coupled" in name else None
        loss = loss_for_trainer(lw.Objective(CrossEntropyLoss(), weights), shift=True)
        done[name] = trained(causal_model(), folder, loss, **arguments)

    model = causal_model()
    loss = loss_for_trainer(
        lw.Objective(CrossEntropyLoss(), penalties=[WeightMagnitudePenalty(0.1)]), shift=True, model=model
    )
    done["penalties"] = trained(model, folder, loss, rows=first_step_unlabelled(), **DISTRIBUTED["tokens, gathered"])

    def naive(outputs, labels, num_items_in_batch=None):
        return token_mean(outputs.logits, labels) / 2

    done["naive"] = trained(causal_model(), folder, naive, **DISTRIBUTED["tokens, not gathered"])
    torch.save(done, folder / f"{os.environ['RANK']}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    run_one_rank(Path(sys.argv[1]))
    os._exit(0)  # not into the threads of a group that something may still hold
