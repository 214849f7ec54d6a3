"""Objectives as the loss function of a Hugging Face ``Trainer``."""

import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lossworks.checks import check_positive, check_real, check_tensor, readable
from lossworks.integrations._checks import coupling
from lossworks.objective import Objective
from lossworks.roles import BatchLoss, Loss

__all__ = ["loss_for_trainer"]

IGNORED = -100  # the label that the Trainer leaves out of its count
RUNS_THE_MODEL = ("forward", "_perturbed", "_outputs")  # the methods of an Objective that run the model


def loss_for_trainer(
    objective: Objective | Loss, *, shift: bool | None = None, model: nn.Module | None = None
) -> "TrainerLoss":
    r"""Make an objective a ``Trainer(compute_loss_func=...)`` that is exact over gradient accumulation and processes.

    .. math::
        \frac{\sum_{i} w_i\, \ell(f_\theta(x_i), y_i)}{N}, \qquad N = \text{the labels, not } -100,
        \text{ of all micro-batches of all processes of one step}

    so each token counts the same, however many others are in its micro-batch. This holds with
    ``average_tokens_across_devices`` on or off: the processes agree on :math:`N` with one all-reduce per step.

    A loss that couples its batch (``couples_batch``, a ``BatchLoss``), or a weighting that does (any without
    ``over_data_set``) or has a memory, sees a step's rows together only if they come in one micro-batch. Such an
    objective is exact with ``gradient_accumulation_steps=1``, also over processes, and refuses any other number. With
    accumulation, use :mod:`lossworks.integrations.accelerate`, which computes the weights in a first pass.

    Penalties count by each micro-batch's share of :math:`N`; in a step without any label they count with its first
    micro-batch. With several processes such a step needs ``average_tokens_across_devices`` (the default). With it off,
    the penalties of such a step are divided by the number of processes, as the function cannot know that the Trainer
    will not multiply.

    Args:
        objective: An :class:`~lossworks.Objective`, or a loss alone. The loss must have ``reduction="mean"``.
        shift: How labels are aligned, needed for outputs with one row per token: True for causal language models
            (position t is scored against label t + 1), False where label t belongs to position t (token classification,
            masked or sequence-to-sequence models).
        model: The model that the objective's penalties act on; needed if it has any.

    Shape:
        - outputs: an object with ``logits`` ``(n, C)`` or ``(n, T, C)``, or the logits themselves; labels: ``(n,)`` or
          ``(n, T)``; for real and binary targets they have the logits' shape. The function returns ``()``.

    Returns:
        A function of outputs, labels and the Trainer's count of labels, for ``compute_loss_func``.

    Raises:
        TypeError: no objective or loss; outputs without logits; labels or a count of another type.
        ValueError: the objective needs what the Trainer does not pass on (``index``, ``group``, the input, or a run of
            the model, as the objectives in ``lossworks.objectives`` do); the loss has another ``reduction`` or
            ``ignore_index``; ``shift`` is missing or contradicts the outputs; a step's rows are split under a part that
            couples them; the Trainer counted other labels than the loss has rows; or its count is no number >= 0.

    Use it with any model of the library whose labels are under ``"labels"`` in the batch.

    >>> from lossworks.losses import CrossEntropyLoss
    >>> loss = loss_for_trainer(CrossEntropyLoss(), shift=True)
    >>> logits, labels = torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2]])
    >>> loss({"logits": logits}, labels, num_items_in_batch=2)  # of two labels: the first is nobody's next token
    tensor(1.3863)
    """
    return TrainerLoss(objective, shift, model)


class TrainerLoss:
    """The function that :func:`loss_for_trainer` returns, of outputs, labels and the step's number of labels."""

    def __init__(self, objective: Objective | Loss, shift: bool | None, model: nn.Module | None) -> None:
        self.objective = Objective(objective) if isinstance(objective, Loss | BatchLoss) else objective
        _check(self.objective, shift, model)
        self.shift = shift
        self.model = model
        self._given: Tensor | None = None  # the Trainer's count, the same object for all micro-batches of a step
        self._labels = torch.zeros((), dtype=torch.int64)  # that count, summed over the processes
        self._seen = torch.zeros(2, dtype=torch.int64)  # the step's rows so far, by the loss's and by the other count

    def __call__(self, outputs: Any, labels: Tensor | None, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """The loss of one micro-batch, as the Trainer calls it."""
        if labels is None:
            raise ValueError('the Trainer gave no labels: they must be under "labels" in each batch')
        check_tensor("labels", labels)
        logits = _logits(outputs)
        output, target = self._rows(type(outputs).__name__, logits, labels)
        self.objective.to(logits.device).train(logits.requires_grad)
        if num_items_in_batch is None:
            if logits.requires_grad:
                raise ValueError("the Trainer gave no num_items_in_batch, so micro-batches cannot add up exactly")
            return self.objective.risk(output, target) + self._price()
        kept = (target != IGNORED).sum() if self._classes() else torch.tensor(target.numel(), device=target.device)
        first = self._count(num_items_in_batch, kept, labels)
        labels_a_process = self._labels.clamp(min=1).to(torch.promote_types(logits.dtype, torch.float32)) / _processes()
        if coupling(self.objective):
            risk = self._whole(output, target, kept, first) / labels_a_process
        else:
            risk = self.objective.risk(output, target, total=labels_a_process)
        share = torch.where(self._labels > 0, kept / labels_a_process, int(first) / _processes())
        return risk + self._price() * share

    def _price(self) -> Tensor | float:
        return sum((penalty(self.model) for penalty in self.objective.penalties), start=0.0)

    def _classes(self) -> bool:
        return self.objective.loss.kind.has_classes

    def _rows(self, name: str, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The logits as flat rows, and their targets."""
        if not self._classes():
            if logits.ndim == labels.ndim + 1 and logits.shape[-1] == 1:
                logits = logits.squeeze(-1)
            # Half precision would round labels; the loss itself computes in float32.
            return logits, labels.to(torch.promote_types(logits.dtype, torch.float32))
        if labels.shape != logits.shape[:-1]:
            raise ValueError(f"labels must have shape {tuple(logits.shape[:-1])}, got {tuple(labels.shape)}")
        if logits.ndim > 2:
            _check_shift(self.shift, name)
        elif self.shift:
            raise ValueError(f"shift=True needs logits (n, T, C), one row per token, got {tuple(logits.shape)}")
        if self.shift:
            logits, labels = logits[..., :-1, :], labels[..., 1:]
        return logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)

    def _count(self, given: Tensor | int, kept: Tensor, labels: Tensor) -> bool:
        """Take in the step's number of labels over all processes, once a step; whether this is its first micro-batch.

        It makes no difference whether the Trainer's count is already summed over the processes: if it is, the Trainer
        multiplies the loss by the number of processes, so in both cases the loss is divided by the mean count.
        """
        here = torch.stack([kept, self._otherwise(labels)])
        if given is self._given:
            self._seen = self._seen + here
            return False
        number = torch.as_tensor(_checked(given), device=kept.device)
        told = torch.cat([number.reshape(1).round().long(), self._seen.to(number.device)])
        if _processes() > 1:
            dist.all_reduce(told)
        self._check_counts(*told[1:].tolist())
        self._labels, self._seen = told[0], here
        self._given = given if isinstance(given, Tensor) else None
        return True

    def _otherwise(self, labels: Tensor) -> Tensor:
        """How many labels the Trainer counts if it applies no shift, or a shift that this loss does not have."""
        aligned = labels.ndim > 1 and not labels.is_floating_point() and not self.shift
        return (labels[..., 1:] if aligned else labels).ne(IGNORED).sum()

    def _check_counts(self, kept: int, otherwise: int) -> None:
        """Check the previous step: one that was cut short proves nothing, unless the other way of counting fits it."""
        if self._given is not None and not self._is_step(kept) and self._is_step(otherwise):
            first = " (here the first of each sequence)" if self.shift else ""
            raise ValueError(
                f"the Trainer counted {otherwise} labels that are not {IGNORED} in a step of which the loss has {kept} "
                f"rows: set labels that have no row{first} to {IGNORED} in the collator, before it counts"
            )

    def _is_step(self, rows: int) -> bool:
        """Whether the step has this many rows, whether each process counted all of them or only its own."""
        return int(self._labels) in (rows, rows * _processes())

    def _whole(self, output: Tensor, target: Tensor, kept: Tensor, first: bool) -> Tensor:
        """This process's share of the weighted sum of the step's only micro-batch, coupled over all processes."""
        rows = kept.clone()
        if _processes() > 1:
            dist.all_reduce(rows)
        if not first or not self._is_step(int(rows)):
            raise ValueError(
                f"{coupling(self.objective)} couples the rows of a step, and this Trainer shows them in parts: set "
                "gradient_accumulation_steps=1, or use lossworks.integrations.accelerate, which weighs in a first pass"
            )
        if _processes() == 1:
            return self.objective.risk(output, target) * rows
        return self.objective.risk(output, target, process_group=dist.group.WORLD) * rows / _processes()


def _check_shift(shift: bool | None, name: str) -> None:
    """Check ``shift`` against the name of the model's output, which says what kind of model it is."""
    if shift is None:
        raise ValueError(
            f"{name} has one row per token: give loss_for_trainer(..., shift=True) for a causal language model, whose "
            "position t is scored against label t + 1, or shift=False"
        )
    if shift and re.search("Seq2Seq|MaskedLM|Classifier", name):
        raise ValueError(f"shift=True, but the model gives {name}: its label t belongs to position t")
    if not shift and "CausalLM" in name:
        raise ValueError(
            f"shift=False, but the model gives {name}: leave labels unshifted, as the Trainer counts them, and give "
            "shift=True"
        )


def _check(objective: Objective, shift: bool | None, model: nn.Module | None) -> None:
    if not isinstance(objective, Objective):
        raise TypeError(f"objective must be an Objective or a Loss, got {type(objective).__name__}")
    if objective.perturb is not None:
        name = type(objective.perturb).__name__
        raise ValueError(f"{name} changes the input, and a Trainer shows its compute_loss_func the outputs only")
    if any(getattr(type(objective), name) is not getattr(Objective, name) for name in RUNS_THE_MODEL):
        name = type(objective).__name__
        raise ValueError(f"{name} runs the model itself, and a Trainer shows its compute_loss_func the outputs only")
    for penalty in objective.penalties:
        if penalty.reads_features:
            raise ValueError(
                f"{type(penalty).__name__} reads features, which a Trainer does not hand to its compute_loss_func"
            )
    for part in (objective.loss, objective.weights):
        for need in ("index", "group"):
            if getattr(part, f"needs_{need}", False):
                raise ValueError(
                    f"{type(part).__name__} needs {need}=, which a Trainer does not hand to its compute_loss_func; "
                    "lossworks.integrations.accelerate and .lightning do"
                )
    reduction = getattr(objective.loss, "reduction", "mean")
    if reduction != "mean":
        raise ValueError(
            f'the loss must have reduction="mean", as the Trainer sets what to divide by, got {reduction!r}'
        )
    ignored = getattr(objective.loss, "ignore_index", IGNORED)
    if ignored != IGNORED:
        raise ValueError(f"the loss must have ignore_index={IGNORED}, which the Trainer leaves out, got {ignored}")
    if shift and not objective.loss.kind.has_classes:
        raise ValueError(
            f"shift=True is for classes, and {type(objective.loss).__name__} takes {objective.loss.kind.title}"
        )
    if bool(objective.penalties) != (model is not None):
        raise ValueError(
            "model= is the model that the objective's penalties act on: give it if, and only if, there are penalties"
        )


def _logits(outputs: Any) -> Tensor:
    found = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", outputs)
    if not isinstance(found, Tensor):
        raise TypeError(f"outputs must have logits, or be the logits, got {type(outputs).__name__}")
    return found


def _checked(count: Tensor | int) -> Tensor | int:
    """The Trainer's count unchanged, or an error unless it is one number >= 0."""
    if isinstance(count, Tensor):
        check_real("num_items_in_batch", count)
        if count.numel() > 1:
            raise ValueError(
                f"the Trainer runs {count.numel()} devices in one process (DataParallel), where it scales this loss "
                "wrongly: start one process per device (torchrun, accelerate launch)"
            )
        if count.numel() == 0:
            raise ValueError(f"num_items_in_batch must be one number, got a tensor of shape {tuple(count.shape)}")
        if not readable(count):
            return count
    check_positive("num_items_in_batch", float(count) if isinstance(count, Tensor) else count, allow_zero=True)
    return count


def _processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
