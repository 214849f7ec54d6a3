"""The base of every part: a module whose tensors are buffers, and which names its papers."""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Self, TypeVar

import torch
from jaxtyping import Int, Shaped
from torch import Tensor, nn

from lossworks.checks import HALF, check_choice
from lossworks.roles.memory import MERGES, merge_rows

__all__ = ["AnyFunction", "Part", "cite", "evaluating"]

AnyFunction = TypeVar("AnyFunction", bound=Callable[..., Any])


def cite(
    *papers: str, helps: tuple[str, ...] = (), changes: tuple[str, ...] = ()
) -> Callable[[AnyFunction], AnyFunction]:
    """Decorator that makes a public function a part of the catalog.

    Args:
        papers: Keys into ``catalog/papers.toml``.
        helps: What the function helps with, in the catalog's vocabulary.
        changes: The arguments that the function changes in place; it leaves all others as they are.
    """

    def mark(function: AnyFunction) -> AnyFunction:
        function.papers, function.helps, function.changes = papers, helps, changes  # type: ignore[attr-defined]
        return function

    return mark


class Part(nn.Module):
    """A piece of an objective: it names its papers, and every tensor that it holds is a parameter or a buffer.

    Its ``state_dict()`` includes the state of a ``generator`` that it was given.

    Class attributes:
        role: The role in the formula, which a base class gives to all parts that derive from it; empty for a layer of a
            model, whose role is that of the folder that it stands in.
        papers: Keys into ``catalog/papers.toml``.
        helps: What the part helps with, in the catalog's vocabulary.
        settings: One to four settings worth trying, as keyword arguments; the first is the default.
        modes: Further settings that the contract drives, so that each choice of an argument is driven by some setting.
        needs: The constructor arguments that come from the training data, among ``class_counts``, ``num_classes``,
            ``num_groups``, ``num_samples``, ``v_min``, ``v_max`` and ``sample_weights``.
            :func:`lossworks.compare` fills them in.
        beside: What the part needs beside a model's outputs, the targets and :attr:`needs`, in words. Such a part is
            never tried by :func:`lossworks.compare` unless the user asks for it.
        needs_index: Whether the part has a memory per training row and so must be given ``index=``.
        memories: The buffers with one value per training row, ``(N, ...)``, and how several values for one row in the
            same batch are merged: ``"amin"``, ``"amax"`` or ``"mean"`` replaces the stored value, ``"sum"`` is added to
            it. ``"mean"`` is for floating-point buffers, the others work for integers too. Only :meth:`remember` writes
            these buffers, which keeps them the same on all ranks and however a batch is split; a call that raises an
            error leaves them unchanged.
        couples_batch: Whether a row's value depends on the other rows of its batch by definition. A buffer that changes
            in training and is no memory couples the batch too. Such a part is called once with the whole batch.
        stochastic: Whether the part draws random numbers.
        starts_as_identity: Whether a layer leaves a model's outputs in evaluation mode as they were when it is put into
            the model.
    """

    role: ClassVar[str] = ""
    papers: ClassVar[tuple[str, ...]] = ()
    helps: ClassVar[tuple[str, ...]] = ()
    settings: ClassVar[tuple[Mapping[str, Any], ...]] = ({},)
    modes: ClassVar[tuple[Mapping[str, Any], ...]] = ()
    needs: ClassVar[tuple[str, ...]] = ()
    beside: ClassVar[str] = ""
    needs_index: ClassVar[bool] = False
    memories: ClassVar[Mapping[str, str]] = {}
    couples_batch: ClassVar[bool] = False
    stochastic: ClassVar[bool] = False
    starts_as_identity: ClassVar[bool] = False
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

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move and cast the tensors, but no buffer of a part with a role to half precision.

        Such buffers are counts, statistics and memories, which half precision rounds or has no room for; a model that
        is cast takes the parts that it holds with it.
        """
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            moved = self._buffers[name]
            if not self.role or buffer is None or moved is None:
                continue
            if moved.dtype in HALF and buffer.dtype not in HALF:
                self._buffers[name] = buffer.to(moved.device)
        return self

    def remember(self, name: str, index: Int[Tensor, " n"], values: Shaped[Tensor, "n *rest"]) -> None:
        """Write these rows' values into the memory ``name``, merged as :attr:`memories` says.

        An index below 0 marks a row that is not remembered. A value that is not finite is not remembered either.
        """
        if self._held_back is None:
            merge_rows(self.get_buffer(name), index, values.detach(), self.memories[name])
        else:
            self._held_back.append((name, index, values.detach()))

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Save a generator's state with the buffers, as a uint8 tensor, so that a resumed training draws on."""
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
        """Load a generator's state; a state saved without a generator leaves the present generator unchanged."""
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
        """Tell a part with a schedule the fraction of the training that is done, in [0, 1]; other parts ignore it."""

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
def evaluating(*models: object) -> Iterator[None]:
    """Put those that are modules in evaluation mode; at the end restore the mode that every module was in."""
    modules = [model for model in models if isinstance(model, nn.Module)]
    modes = [(member, member.training) for module in modules for member in module.modules()]
    try:
        for member, _ in modes:
            member.training = False
        yield
    finally:
        for member, mode in modes:
            member.training = mode
