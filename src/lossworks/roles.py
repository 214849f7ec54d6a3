r"""The roles of the formula: one base class a symbol, each with one method.

.. math::
    \min_\theta \; \max_{w, \delta} \; \sum_i w_i \, \ell(f_\theta(x_i + \delta_i), y_i) + R(\theta)

:class:`Loss` is :math:`\ell`, :class:`Weighting` is :math:`w`, :class:`Perturbation` is :math:`\delta` and
:class:`Penalty` is :math:`R`. All are :class:`Part`: modules whose tensors are buffers and which say where they come
from.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar, cast

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from lossworks.checks import (
    check_binary,
    check_choice,
    check_classes,
    check_floating,
    check_ignore_index,
    check_positive,
    check_real,
    check_same_shape,
    check_sample_weight,
    check_tensor,
    check_total,
    precise,
    readable,
)
from lossworks.distributed import ProcessGroup, gather_rows, own_rows, row_counts, sum_over_ranks, world_size
from lossworks.memories import MERGES, merge_rows

__all__ = [
    "BatchLoss",
    "Consistency",
    "Loss",
    "Part",
    "Penalty",
    "Perturbation",
    "SoftmaxForm",
    "Weighting",
    "about_kept",
    "asked_once",
    "cite",
    "evaluating",
    "held_back",
    "remember_over_ranks",
    "remembering",
    "weighted_reduction",
]

REDUCTIONS = ("mean", "sum", "none")
Kind = Literal["classes", "binary", "real", "pairs"]
AnyFunction = TypeVar("AnyFunction", bound=Callable[..., Any])


def cite(*papers: str, helps: tuple[str, ...] = ()) -> Callable[[AnyFunction], AnyFunction]:
    """Mark a public function as a part of the catalog: the papers it carries, and what it helps with."""

    def mark(function: AnyFunction) -> AnyFunction:
        function.papers, function.helps = papers, helps  # type: ignore[attr-defined]
        return function

    return mark


class Part(nn.Module):
    """A piece of an objective: it names its papers, and every tensor that it holds is a parameter or a buffer.

    Its ``state_dict()`` also has the state of a ``generator`` that it was given.

    Class attributes:
        papers: Keys into ``catalog/papers.toml``.
        helps: What it helps with, in the catalog's vocabulary.
        settings: One to four settings worth trying, as keyword arguments; the first is the default.
        needs: Constructor arguments that come from the training data, of ``class_counts``, ``num_classes``,
            ``num_groups``, ``num_samples``, ``v_min``, ``v_max`` and ``sample_weights``.
            :func:`lossworks.compare` fills them in.
        needs_index: Whether it has a memory per training row and so must be given ``index=``.
        memories: The buffers with one value a training row, ``(N, ...)``, and how several values for one row in one
            batch become one: ``"amin"``, ``"amax"`` or ``"mean"`` replaces what was held, ``"sum"`` is added to it.
            ``"mean"`` is for floating-point buffers, the others for integers too. They are written by :meth:`remember`
            and by nothing else, which keeps them the same on all ranks and however a batch is split, and a call that
            is refused leaves them as they were.
        couples_batch: Whether a row's value depends on the other rows of its batch by definition. Any other buffer
            that changes in training makes it so too: the part is then asked once about the whole batch.
        stochastic: Whether it draws random numbers.
    """

    papers: ClassVar[tuple[str, ...]] = ()
    helps: ClassVar[tuple[str, ...]] = ()
    settings: ClassVar[tuple[Mapping[str, Any], ...]] = ({},)
    needs: ClassVar[tuple[str, ...]] = ()
    needs_index: ClassVar[bool] = False
    memories: ClassVar[Mapping[str, str]] = {}
    couples_batch: ClassVar[bool] = False
    stochastic: ClassVar[bool] = False
    _held_back: list[tuple[str, Tensor, Tensor]] | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for merge in cls.memories.values():
            check_choice(f"{cls.__name__}.memories", merge, MERGES)

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, Tensor) and not isinstance(value, nn.Parameter) and name not in self._buffers:
            self.__dict__.pop(name, None)
            self.register_buffer(name, value)
        else:
            super().__setattr__(name, value)

    def remember(self, name: str, index: Int[Tensor, " n"], values: Shaped[Tensor, "n *rest"]) -> None:
        """Write these rows' values into the memory ``name``, merged as :attr:`memories` says.

        An index below 0 is a row that isn't remembered, and neither is a value that isn't finite.
        """
        if self._held_back is None:
            merge_rows(self.get_buffer(name), index, values.detach(), self.memories[name])
        else:
            self._held_back.append((name, index, values.detach()))

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """A generator's state goes with the buffers, as a uint8 tensor, so that a resumed training draws on."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update({prefix + name: generator.get_state() for name, generator in self._generators()})

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """A state that was saved without a generator leaves it as it is."""
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        for name, generator in self._generators():
            key = prefix + name
            if key not in state_dict:
                continue
            if strict:
                unexpected_keys.remove(key)
            try:
                generator.set_state(state_dict[key].cpu())
            except (RuntimeError, TypeError, AttributeError) as error:
                error_msgs.append(f'"{key}" is no state of a generator on {generator.device}: {error}')

    def _generators(self) -> list[tuple[str, torch.Generator]]:
        return [(name, held) for name, held in vars(self).items() if isinstance(held, torch.Generator)]

    def set_progress(self, fraction: float) -> None:
        """Tell a part with a schedule how far the training is, in [0, 1]; the others ignore it."""

    def extra_repr(self) -> str:
        """The hyperparameters, as the constructor takes them."""
        shown = []
        for name, parameter in inspect.signature(type(self).__init__).parameters.items():
            value = getattr(self, name, None)
            if name in ("self", "reduction") or value is None or value is parameter.default:
                continue
            if isinstance(value, Tensor) and value.numel() > 8:
                value = f"tensor{tuple(value.shape)}"
            shown.append(f"{name}={value.tolist() if isinstance(value, Tensor) else value}")
        return ", ".join(shown)


@contextlib.contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Everything in ``modules`` in evaluation mode, and afterwards each in the mode that it was in."""
    modes = [(member, member.training) for module in modules for member in module.modules()]
    try:
        for member, _ in modes:
            member.training = False
        yield
    finally:
        for member, mode in modes:
            member.training = mode


Offers = list[tuple[Part, str, Tensor, Tensor]]


@contextlib.contextmanager
def held_back(module: nn.Module, offers: Offers | None = None) -> Iterator[None]:
    """Keep what the parts in ``module`` would remember in ``offers`` (or drop it) and leave their memories alone."""
    parts = [(part, part._held_back) for part in module.modules() if isinstance(part, Part) and part.memories]
    for part, _ in parts:
        part._held_back = []
    try:
        yield
    finally:
        for part, before in parts:
            if offers is not None:
                offers += [(part, *offer) for offer in part._held_back or ()]
            part._held_back = before


@contextlib.contextmanager
def remembering(module: nn.Module, process_group: ProcessGroup | None = None) -> Iterator[None]:
    """Have the parts in ``module`` remember when all is done, as one batch on all ranks; where it fails, nothing."""
    offers: Offers = []
    with held_back(module, offers):
        yield
    if offers or process_group is not None:  # whose other ranks may have some
        remember_over_ranks(module, offers, process_group)


def remember_over_ranks(module: nn.Module, offers: Offers, process_group: ProcessGroup | None) -> None:
    """Write what was held back on all ranks into the memories of each, as one batch."""
    for part in module.modules():
        if not (isinstance(part, Part) and part.training):
            continue
        for name in part.memories:
            own = [(index, values) for owner, key, index, values in offers if owner is part and key == name]
            if process_group is None and len(own) < 2:
                for index, values in own:
                    part.remember(name, index, values)
                continue
            memory = part.get_buffer(name)
            index = torch.cat([memory.new_empty(0, dtype=torch.int64), *(rows for rows, _ in own)])
            values = torch.cat([memory[:0], *(value.to(memory.dtype) for _, value in own)])
            if process_group is not None:
                counts = row_counts(len(index), process_group, index.device)
                index = gather_rows(index, process_group, counts)
                values = gather_rows(values, process_group, counts)
            part.remember(name, index, values)


def weighted_reduction(
    losses: Tensor,
    weights: Tensor | None,
    reduction: str,
    total: float | Tensor | None = None,
    process_group: ProcessGroup | None = None,
) -> Tensor:
    """Reduce per-row losses as torch does: ``mean`` divides by the sum of the weights (rows kept), or by ``total``.

    An empty or wholly ignored batch has mean 0, with zero gradients. ``total`` is what the whole batch sums to when
    ``losses`` is one of its micro-batches, so that the means over micro-batches add up exactly; where it is 0 no row
    counts, and the mean is 0 too. With a ``process_group`` whose ranks hold the other rows, the mean over ranks of what
    each returns is the whole's value.
    """
    weighted = losses if weights is None else losses * weights
    if reduction == "none":
        return weighted
    summed = weighted.sum()
    if process_group is not None:
        summed = summed * world_size(process_group)
    if reduction == "sum":
        return summed
    if total is not None:
        # A number of any dtype leaves the value in the losses' own.
        total = total.to(summed.dtype) if isinstance(total, Tensor) else total
        return summed / (total + (total == 0))
    if weights is None and process_group is None:
        return summed / max(losses.numel(), 1)
    own = summed.new_tensor(losses.numel()) if weights is None else weights.sum()
    kept = sum_over_ranks(own, process_group)
    return summed / torch.where(kept > 0, kept, torch.ones_like(kept))


@dataclass(frozen=True)
class SoftmaxForm:
    r"""A loss as a function of one or two numbers of a row, through which its gradient has a closed form.

    .. math::
        \ell(z, y) = g\Big({-\log p_y},\; {-\sum_k \log p_k}\Big), \qquad
        p = \mathrm{softmax}\big(a z + b + c_y [k = y]\big)

    Args:
        value: :math:`g`, of the first number ``(n,)``, and of the second too where ``reads_total``; differentiable.
        scale: :math:`a`, a number or a 0-d tensor.
        shift: :math:`b`, ``(C,)``.
        handicap: :math:`c`, a number or a 0-d tensor, or ``(C,)`` by the target's class.
        reads_total: Whether :math:`g` takes the second number.
    """

    value: Callable[..., Tensor]
    scale: float | Tensor = 1.0
    shift: Tensor | None = None
    handicap: float | Tensor | None = None
    reads_total: bool = False


def _of_floats(predict: AnyFunction) -> AnyFunction:
    """The same method, which checks what it is given first."""

    @functools.wraps(predict)
    def checked(self: Any, output: Tensor) -> Tensor:
        check_floating("output", output)
        return predict(self, output)

    return cast(AnyFunction, checked)


class Loss(Part):
    """A loss with one value a row: subclasses give :meth:`per_sample`, the base gives torch's conventions.

    Four kinds of target, by the class attribute ``kind``:

    - ``"classes"``: output ``(n, C)`` or ``(n, C, d1, ...)``, target int64 ``(n,)`` or ``(n, d1, ...)``, with
      ``ignore_index``; where ``soft_targets`` is true also class probabilities in the output's shape.
    - ``"binary"``: output and target of one shape; the target is 0 or 1 (float, int64 or bool), the output a score
      whose sign is the answer.
    - ``"real"``: output and target of one shape, both floating-point.
    - ``"pairs"``: output and target of one shape, both scores of the model, with gradients in both; of the pair the
      output is the one that should be higher. No table has such a target.

    Half-precision outputs are computed and returned in float32.

    Class attributes:
        kind: See above.
        rowwise: Whether a row's value reads that row's logits alone, so that the fused path may take it in chunks.
        soft_targets: Whether class-probability targets are allowed.
        probabilistic: Whether :meth:`predict` estimates probabilities (a proper loss), or needs calibration first.
        surrogate_gradient: Whether its gradient is by definition not the derivative of its value.
    """

    kind: ClassVar[Kind] = "classes"
    rowwise: ClassVar[bool] = False
    soft_targets: ClassVar[bool] = False
    probabilistic: ClassVar[bool] = False
    surrogate_gradient: ClassVar[bool] = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "predict" in cls.__dict__:
            cls.predict = _of_floats(cls.predict)  # type: ignore[method-assign]  # checked wherever it is overridden

    def __init__(self, reduction: str = "mean", *, ignore_index: int = -100) -> None:
        super().__init__()
        self.reduction = check_choice("reduction", reduction, REDUCTIONS)
        self.ignore_index = check_ignore_index(ignore_index)

    def per_sample(self, output: Tensor, target: Tensor) -> Float[Tensor, " n"]:
        """One value a row, from flat rows whose shapes the base has checked."""
        raise NotImplementedError(f"{type(self).__name__} must define per_sample(output, target) -> (n,)")

    def softmax_form(self, num_classes: int) -> "SoftmaxForm | None":
        """How the loss reads a row of so many logits with a class as target, if it is by their softmax alone."""
        return None

    def value_and_logit_gradient(
        self, output: Tensor, target: Tensor, memory: Tensor | None = None
    ) -> tuple[Tensor, Tensor] | None:
        """Each row's loss for a class as target and its gradient in the row's logits, if it has a closed form.

        Not recorded by autograd, so not asked for where a hyperparameter learns. A loss with a memory is given the
        rows' own, see :meth:`recall`.
        """
        return None

    def recall(self, output: Tensor, target: Tensor, index: Tensor) -> Tensor:
        """For a loss with a memory: what it reads of it for these rows, and would remember.

        Nothing that is read changes before :meth:`keep`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define recall(output, target, index) -> (n, ...)")

    def keep(self, index: Tensor, memory: Tensor) -> None:
        """Have the loss's memory be what :meth:`recall` gave for these rows."""
        (name,) = self.memories
        self.remember(name, index, memory)

    def output_size(self, num_classes: int = 1) -> int:
        """How many outputs a model needs for this loss."""
        return num_classes if self.kind == "classes" else 1

    def predict(self, output: Tensor) -> Tensor:
        """Class probabilities ``(n, C)``, the probability of class 1 ``(n,)``, or the value ``(n,)``."""
        check_floating("output", output)
        if self.kind == "classes":
            return output.softmax(dim=-1)
        return output.sigmoid() if self.kind == "binary" else output

    def forward(
        self,
        output: Float[Tensor, "n *rest"],
        target: Shaped[Tensor, "n *rest2"],
        *,
        sample_weight: Float[Tensor, "n *rest2"] | None = None,
        index: Int[Tensor, "n *rest2"] | None = None,
        total: float | Tensor | None = None,
        process_group: ProcessGroup | None = None,
    ) -> Tensor:
        """The reduced loss.

        In data-parallel training ``process_group=torch.distributed.group.WORLD`` makes the gradient that it averages
        over ranks that of the whole batch, however many rows each rank has: a rank returns its own sum times the number
        of ranks over the sum of all ranks' weights. A loss that couples the batch is computed by every rank from all
        ranks' outputs, gathered with their gradients; if it draws, the ranks' generators must be in one state.

        Args:
            output: The model's outputs, see the class.
            target: The targets, see the class.
            sample_weight: One weight a row, >= 0; ``mean`` divides by their sum, as torch does with class weights.
            index: The rows' numbers in the training data, for losses with a memory per row.
            total: What ``mean`` divides by instead, when this batch is a part of a larger one: the sum of
                :meth:`total_of` over its parts on all ranks.
            process_group: The ranks that hold the other rows of one batch; all of them call this.
        """
        if process_group is not None and self.couples_batch:
            counts = row_counts(len(output), process_group, output.device)

            def all_ranks(rows: Tensor | None) -> Any:
                return None if rows is None else gather_rows(rows, process_group, counts)

            value = self.forward(
                all_ranks(output),
                all_ranks(target),
                sample_weight=all_ranks(sample_weight),
                index=all_ranks(index),
                total=total,
            )
            return own_rows(value, process_group, counts) if self.reduction == "none" else value
        check_floating("output", output)
        check_tensor("target", target)
        if total is not None:
            check_total(total)
        losses, weights = self.weighted_rows(
            output, target, sample_weight=sample_weight, index=index, process_group=process_group
        )
        return weighted_reduction(losses, weights, self.reduction, total, process_group)

    def total_of(self, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """What ``mean`` divides by for these targets: the number of rows kept, or the sum of their weights.

        A loss whose rows aren't its targets' entries says so here.
        """
        check_tensor("target", target)
        rows, kept = target, None
        if self.kind == "classes":
            if target.is_floating_point():
                if target.ndim < 2:
                    raise TypeError(f"target must be int64 classes, or probabilities (n, C, ...), got {target.dtype}")
                rows = target[:, 0]
            else:
                kept = target != self.ignore_index
        if sample_weight is not None:
            check_sample_weight(sample_weight, rows.shape)
            exact = sample_weight.to(precise(sample_weight.device))
            return exact.sum() if kept is None else (exact * kept).sum()
        return torch.tensor(rows.numel(), device=target.device) if kept is None else kept.sum()

    def weighted_rows(
        self,
        output: Tensor,
        target: Tensor,
        *,
        sample_weight: Tensor | None = None,
        index: Tensor | None = None,
        process_group: ProcessGroup | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Per-row losses and what they weigh in the mean; a memory per row is then the same on all ranks."""
        with remembering(self, process_group):
            losses, kept = self.rows(output, target, index)
            if sample_weight is not None:
                check_sample_weight(sample_weight, losses.shape)
        weights = kept.to(losses.dtype) if kept is not None else None
        if sample_weight is not None:
            weights = sample_weight.to(losses.dtype) if weights is None else sample_weight.to(losses.dtype) * weights
        return losses, weights

    def rows(self, output: Tensor, target: Tensor, index: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Per-row losses in the target's shape, and which rows are kept (None where all are).

        A row that isn't kept has index -1 for the loss, so that it isn't remembered.
        """
        check_floating("output", output)
        check_tensor("target", target)
        output = output.float() if output.dtype in (torch.float16, torch.bfloat16) else output
        if self.kind != "classes":
            check_same_shape(output, target)
            shape = target.shape
            extra = self._extra(index, shape)
            output, target = output.flatten(), _flat_target(self.kind, output, target)
            losses, kept = self.per_sample(output, target, **extra), None
        else:
            output, target, shape = self._class_rows(output, target)
            extra = self._extra(index, shape)
            kept = None if target.is_floating_point() else target != self.ignore_index
            hard = target
            if kept is not None:
                hard = torch.where(kept, target, 0)
                extra = {name: torch.where(kept, index, -1) for name, index in extra.items()}
            losses = self.per_sample(output, hard, **extra)
            if kept is not None:
                losses = torch.where(kept, losses, torch.zeros_like(losses))
                kept = kept.reshape(shape)
        check_no_nan(output, losses)
        return losses.reshape(shape), kept

    def _extra(self, index: Tensor | None, shape: torch.Size) -> dict[str, Tensor]:
        if not self.needs_index:
            return {}
        if index is None:
            raise ValueError(
                f"{type(self).__name__} remembers a value per training row: give it index=, the rows' numbers"
            )
        check_tensor("index", index)
        if index.dtype != torch.int64 or index.shape != shape:
            raise ValueError(f"index must be int64 of shape {tuple(shape)}, got {index.dtype} {tuple(index.shape)}")
        return {"index": index.flatten()}

    def _class_rows(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor, torch.Size]:
        """Class scores as ``(rows, C)``, the target as rows, and the shape that the rows came in."""
        if output.ndim < 2:
            raise ValueError(f"output must have shape (n, C) or (n, C, d1, ...), got {tuple(output.shape)}")
        shape = output.shape[:1] + output.shape[2:]
        flat = output.movedim(1, -1).flatten(0, -2)
        if target.is_floating_point():
            if not self.soft_targets:
                raise TypeError(f"{type(self).__name__} takes int64 classes as target, got {target.dtype}")
            check_same_shape(output, target)
            return flat, target.movedim(1, -1).reshape(flat.shape).to(flat.dtype), shape
        if target.dtype != torch.int64:
            raise TypeError(f"target must be int64 classes, got {target.dtype}")
        if target.shape != shape:
            raise ValueError(
                f"target must have shape {tuple(shape)} for output {tuple(output.shape)}, got {tuple(target.shape)}"
            )
        target = target.flatten()
        check_classes(flat, target, ignore_index=self.ignore_index)
        return flat, target, shape


class BatchLoss(Part):
    """A loss that couples the whole batch and has no per-sample form; a ``Weighting`` refuses it.

    Split over ranks it is exact by :meth:`over_ranks`, which :class:`lossworks.Objective` calls.

    Attributes:
        kind: Its kind of target, as a :class:`Loss` has it.
    """

    kind: ClassVar[Kind] = "real"
    couples_batch = True

    def output_size(self, num_classes: int = 1) -> int:
        """How many outputs a model needs for this loss."""
        return num_classes if self.kind == "classes" else 1

    def forward(self, *inputs: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """One number for the batch."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(...) -> scalar")

    def over_ranks(
        self, *inputs: Tensor, sample_weight: Tensor | None = None, process_group: ProcessGroup
    ) -> Float[Tensor, ""]:
        """The loss of all ranks' rows, computed by each of them from what was gathered with its gradients.

        The mean over ranks of the gradients is the whole batch's. A loss that draws needs the ranks' generators in one
        state.
        """
        gathered = [gather_rows(rows, process_group) for rows in inputs]
        weight = None if sample_weight is None else gather_rows(sample_weight, process_group)
        return self(*gathered, sample_weight=weight)


class Weighting(Part):
    """Weights on the rows: non-negative, with mean 1 over the batch, or over the data set where ``over_data_set``.

    Class attributes:
        over_data_set: Whether the mean of 1 is over the data set (so a batch's own mean differs), which keeps fixed
            weights exact when a batch is split.
        reads_losses: Whether the weights depend on the losses. Where they don't, they are known before the losses are,
            which saves the fused form a pass.
        needs_target: Whether it must be given ``target=``.
        needs_group: Whether it must be given ``group=``.
    """

    over_data_set: ClassVar[bool] = False
    reads_losses: ClassVar[bool] = True
    needs_target: ClassVar[bool] = False
    needs_group: ClassVar[bool] = False

    def forward(
        self,
        losses: Float[Tensor, " n"],
        *,
        index: Int[Tensor, " n"] | None = None,
        group: Int[Tensor, " n"] | None = None,
        target: Tensor | None = None,
    ) -> Float[Tensor, " n"]:
        """The weights of these rows."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(losses, ...) -> (n,)")

    def _required(self, name: str, value: Tensor | None, losses: Tensor) -> Tensor:
        """The argument, if it was given as one int64 number a row."""
        check_floating("losses", losses)
        if value is None:
            raise ValueError(f"{type(self).__name__} needs {name}=, one int64 number a row")
        check_tensor(name, value)
        if value.dtype != torch.int64:
            raise TypeError(f"{name} must be int64, got {value.dtype}")
        check_same_shape(losses, value, names=("losses", name))
        return value


def asked_once(weights: Weighting) -> bool:
    """Whether the weighting must see the whole batch at once, or remembers what it saw."""
    inside = [part for part in weights.modules() if isinstance(part, Part)]
    return not weights.over_data_set or any(part.couples_batch or part.memories for part in inside)


def about_kept(
    ask: Callable[[Tensor, dict[str, Tensor]], Tensor],
    losses: Float[Tensor, " n"],
    columns: dict[str, Tensor],
    kept: Tensor,
) -> Float[Tensor, " n"]:
    """The weights that are found for the rows kept, of which alone is asked, and 0 for the others.

    Under ``vmap`` and ``torch.compile`` rows can't be left out by their values: there all are asked about.
    """
    if torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(losses):
        return ask(losses, columns)
    if bool(kept.all()):
        return ask(losses, columns).to(losses.dtype)
    rows = kept.nonzero().flatten()
    found = ask(losses[rows], {name: column[rows] for name, column in columns.items()})
    return torch.zeros_like(losses).index_copy(0, rows, found.to(losses.dtype))


class Perturbation(Part):
    """A change of the input: ``risk(x) -> (n,)`` is what it makes worse."""

    def forward(
        self, risk: Callable[[Tensor], Float[Tensor, " n"]], x: Float[Tensor, "n *features"]
    ) -> Float[Tensor, "n *features"]:
        """The changed input, in ``x``'s shape and dtype."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(risk, x) -> x'")


class Consistency(Perturbation):
    """A perturbation that is paid for and not trained on: each row's loss is the clean one plus a price.

    The price is ``strength`` times :meth:`per_sample`, how far the worst perturbed output is from the clean one.

    Args:
        attack: What looks for the perturbed input that is furthest.
        strength: The price of the distance, >= 0, in loss units.
    """

    def __init__(self, attack: Perturbation, strength: float | Tensor) -> None:
        super().__init__()
        if not isinstance(attack, Perturbation) or isinstance(attack, Consistency):
            raise TypeError(f"attack must be a perturbation of the input, got {type(attack).__name__}")
        self.attack = attack
        self.strength = check_positive("strength", strength, allow_zero=True)

    def per_sample(self, perturbed: Tensor, clean: Tensor, target: Tensor) -> Float[Tensor, " n"]:
        """How far each row's perturbed output is from its clean one."""
        raise NotImplementedError(f"{type(self).__name__} must define per_sample(perturbed, clean, target) -> (n,)")

    def forward(
        self, risk: Callable[[Tensor], Float[Tensor, " n"]], x: Float[Tensor, "n *features"]
    ) -> Float[Tensor, "n *features"]:
        """What the attack finds."""
        return self.attack(risk, x)


class Penalty(Part):
    """A price on the model itself."""

    def forward(self, model: nn.Module, *, features: Tensor | None = None) -> Float[Tensor, ""]:
        """The penalty, one number, to be added to the risk."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(model) -> scalar")


def _flat_target(kind: Kind, output: Tensor, target: Tensor) -> Tensor:
    if kind != "binary":
        check_floating("target", target)
    check_real("target", target)
    flat = target.flatten().to(output.dtype)
    if kind == "binary":
        check_binary(flat)
    return flat


def check_no_nan(output: Tensor, losses: Tensor) -> None:
    """Name the rows whose outputs are NaN; looked for only where a loss shows it, so it costs one number a row."""
    # A sum is a tenth of the price of looking at each, and can only be finite if all are.
    if readable(losses) and not bool(losses.detach().sum().isfinite()):
        rows = output.detach().isnan().reshape(output.shape[0], -1).any(dim=1).nonzero().flatten()
        if rows.numel():
            more = f" and {rows.numel() - 3} more" if rows.numel() > 3 else ""
            raise ValueError(f"output has NaN in row {', '.join(str(int(r)) for r in rows[:3])}{more}")
