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

IGNORED = -100  # the label that the Trainer leaves out when it counts
RUNS_THE_MODEL = ("forward", "_perturbed", "_outputs")  # what of an Objective does


def loss_for_trainer(
    objective: Objective | Loss, *, shift: bool | None = None, model: nn.Module | None = None
) -> "TrainerLoss":
    r"""An objective for ``Trainer(compute_loss_func=...)``, exact over gradient accumulation and over processes.

    .. math::
        \frac{\sum_{i} w_i\, \ell(f_\theta(x_i), y_i)}{N}, \qquad N = \text{the labels, not } -100,
        \text{ of all micro-batches of all processes of one step}

    so each token counts the same however many others stand in its micro-batch. It holds with
    ``average_tokens_across_devices`` on or off: processes agree on :math:`N` with one all-reduce a step.

    A loss that couples its batch (``couples_batch``, a ``BatchLoss``), or a weighting that does (any without
    ``over_data_set``) or has a memory, sees a step's rows together only if they come in one micro-batch: it is exact
    with ``gradient_accumulation_steps=1``, over the processes too, and refuses any other. With accumulation, use
    :mod:`lossworks.integrations.accelerate`, which weighs in a first pass.

    Penalties count by each micro-batch's share of :math:`N`, and in a step without any label with its first. Over
    processes such a step needs ``average_tokens_across_devices`` (the default): off, they are divided by the number of
    processes in it, as nothing tells the function that the Trainer will not multiply.

    Args:
        objective: An :class:`~lossworks.Objective`, or a loss alone. Its loss has ``reduction="mean"``.
        shift: For outputs with one row a token, which must be said: True for causal language models (position t is
            scored against label t + 1), False where label t belongs to position t (token classification, masked or
            sequence-to-sequence models).
        model: The model that the objective's penalties are a price on; needed if it has any.

    Shape:
        - outputs: with ``logits`` ``(n, C)`` or ``(n, T, C)``, or the logits themselves; labels: ``(n,)`` or
          ``(n, T)``, for real and binary targets the logits' shape. Returns ``()``.

    Raises:
        TypeError: not an objective; outputs without logits; labels or a count of another type.
        ValueError: the objective needs what the Trainer does not hand over (``index``, ``group``, the input, a run of
            the model, as those of ``lossworks.objectives`` do); the loss has another ``reduction`` or ``ignore_index``;
            ``shift`` is missing, or against what the outputs are; a step's rows are split under a part that couples
            them; the Trainer counted other labels than the loss has rows, or no number >= 0.

    Use it with any model of the library whose labels stand under ``"labels"``.

    >>> from lossworks.losses import CrossEntropyLoss
    >>> loss = loss_for_trainer(CrossEntropyLoss(), shift=True)
    >>> logits, labels = torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2]])
    >>> loss({"logits": logits}, labels, num_items_in_batch=2)  # of two labels: the first is nobody's next token
    tensor(1.3863)
    """
    return TrainerLoss(objective, shift, model)


class TrainerLoss:
    """What :func:`loss_for_trainer` gives: a function of outputs, labels and the step's number of labels."""

    def __init__(self, objective: Objective | Loss, shift: bool | None, model: nn.Module | None) -> None:
        self.objective = Objective(objective) if isinstance(objective, Loss | BatchLoss) else objective
        _check(self.objective, shift, model)
        self.shift = shift
        self.model = model
        self._given: Tensor | None = None  # the Trainer's count, one and the same object for a step's micro-batches
        self._labels = torch.zeros((), dtype=torch.int64)  # that count, summed over the processes
        self._seen = torch.zeros(2, dtype=torch.int64)  # the step's rows so far: the loss's own, and counted otherwise

    def __call__(self, outputs: Any, labels: Tensor | None, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """The loss of one micro-batch, as the Trainer asks for it."""
        if labels is None:
            raise ValueError('the Trainer gave no labels: they must stand under "labels" in each batch')
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
        """Flat rows of logits, and their targets."""
        if not self._classes():
            if logits.ndim == labels.ndim + 1 and logits.shape[-1] == 1:
                logits = logits.squeeze(-1)
            return logits, labels.to(logits.dtype)
        if labels.shape != logits.shape[:-1]:
            raise ValueError(f"labels must have shape {tuple(logits.shape[:-1])}, got {tuple(labels.shape)}")
        if logits.ndim > 2:
            _check_shift(self.shift, name)
        elif self.shift:
            raise ValueError(f"shift=True needs logits (n, T, C), one row a token, got {tuple(logits.shape)}")
        if self.shift:
            logits, labels = logits[..., :-1, :], labels[..., 1:]
        return logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)

    def _count(self, given: Tensor | int, kept: Tensor, labels: Tensor) -> bool:
        """Take in the step's number of labels, once a step, over all processes; whether its first micro-batch is here.

        Whether the Trainer's count was summed over the processes already makes no difference: if it was, it multiplies
        the loss by the processes, so that both ways the loss is divided by the mean count over the processes.
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
        """How many labels the Trainer counts if it knows of no shift, or of one that is not there."""
        aligned = labels.ndim > 1 and not labels.is_floating_point() and not self.shift
        return (labels[..., 1:] if aligned else labels).ne(IGNORED).sum()

    def _check_counts(self, kept: int, otherwise: int) -> None:
        """Of the step before: one that was cut short proves nothing, but the other way of counting does."""
        if self._given is not None and not self._is_step(kept) and self._is_step(otherwise):
            first = " (here the first of each sequence)" if self.shift else ""
            raise ValueError(
                f"the Trainer counted {otherwise} labels that are not {IGNORED} in a step of which the loss has {kept} "
                f"rows: set labels that have no row{first} to {IGNORED} in the collator, before it counts"
            )

    def _is_step(self, rows: int) -> bool:
        """Whether these are as many as the step has, if each process counted all of them or only its own."""
        return int(self._labels) in (rows, rows * _processes())

    def _whole(self, output: Tensor, target: Tensor, kept: Tensor, first: bool) -> Tensor:
        """This process's weighted sum of the step's only micro-batch, coupled over all processes."""
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
    """Hold what was said against the name of the model's output, which says what the model is."""
    if shift is None:
        raise ValueError(
            f"{name} has one row a token: say loss_for_trainer(..., shift=True) for a causal language model, whose "
            "position t is scored against label t + 1, or shift=False"
        )
    if shift and re.search("Seq2Seq|MaskedLM|Classifier", name):
        raise ValueError(f"shift=True, but the model gives {name}: its label t belongs to position t")
    if not shift and "CausalLM" in name:
        raise ValueError(
            f"shift=False, but the model gives {name}: leave labels unshifted, as the Trainer counts them, and say "
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
            f'the loss must have reduction="mean", as the Trainer says what to divide by, got {reduction!r}'
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
            "model= is what an objective's penalties are a price on: give it if, and only if, there are any"
        )


def _logits(outputs: Any) -> Tensor:
    found = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", outputs)
    if not isinstance(found, Tensor):
        raise TypeError(f"outputs must have logits, or be the logits, got {type(outputs).__name__}")
    return found


def _checked(count: Tensor | int) -> Tensor | int:
    """The Trainer's count as it came, if it is one number >= 0."""
    if isinstance(count, Tensor):
        check_real("num_items_in_batch", count)
        if count.numel() > 1:
            raise ValueError(
                f"the Trainer runs {count.numel()} devices in one process (DataParallel), where it scales this loss "
                "wrongly: start one process a device (torchrun, accelerate launch)"
            )
        if count.numel() == 0:
            raise ValueError(f"num_items_in_batch must be one number, got a tensor of shape {tuple(count.shape)}")
        if not readable(count):
            return count
    check_positive("num_items_in_batch", float(count) if isinstance(count, Tensor) else count, allow_zero=True)
    return count


def _processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
