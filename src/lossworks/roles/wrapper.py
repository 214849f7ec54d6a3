"""The role of a wrapper around any torch optimizer."""

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

from torch import nn
from torch.amp import GradScaler
from torch.optim import LBFGS, Optimizer

__all__ = ["Closure", "Wrapper"]

Closure = Callable[[], Any]


class Wrapper(Optimizer):
    """An optimizer around another one, whose groups, learning rates and state it shares; schedulers may take either.

    Args:
        optimizer: Any torch optimizer, or another wrapper.
    """

    papers: ClassVar[tuple[str, ...]] = ()
    helps: ClassVar[tuple[str, ...]] = ()
    settings: ClassVar[tuple[Mapping[str, Any], ...]] = ({},)
    """One to four settings worth trying, as keyword arguments; the first is the default."""
    modes: ClassVar[tuple[Mapping[str, Any], ...]] = ()
    """Further settings that the contract drives, so that each choice of an argument is driven by some setting."""
    own: ClassVar[tuple[str, ...]] = ()
    """The attributes that the wrapper adds to the inner optimizer's state."""
    asks_rows: ClassVar[bool] = False
    """Whether it evaluates the model on rows itself, so that it must be given whole batches."""
    stochastic: ClassVar[bool] = False
    """Whether it draws random numbers."""
    takes_outputs: ClassVar[bool] = False
    """Whether the closure of ``step`` gives the model's outputs, and not the loss after its ``backward``."""
    gradients: ClassVar[int] = 1
    """How many gradients a step takes; a wrapper that takes several cannot be inside one that has only one to give."""
    role: ClassVar[str] = "optimizer"

    def __init__(self, optimizer: Optimizer) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be a torch optimizer, got {type(optimizer).__name__}")
        super().__init__(optimizer.param_groups, optimizer.defaults)
        self.inner = optimizer
        self._mark()

    # What it shares with the inner optimizer.

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The inner optimizer's groups."""
        caller = sys._getframe(1)
        if caller.f_code.co_name == "_unscale_grads_" and isinstance(scaler := caller.f_locals["self"], GradScaler):
            self._unscaled(scaler, self)
        return self.inner.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        if "inner" in self.__dict__:  # and not while it is built
            self.inner.param_groups = groups

    @property
    def state(self) -> Any:
        """The inner optimizer's state."""
        return self.inner.state

    @state.setter
    def state(self, state: Any) -> None:
        if "inner" in self.__dict__:
            self.inner.state = state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group to the inner optimizer."""
        if "inner" in self.__dict__:
            self.inner.add_param_group(param_group)
            self._mark()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, as the inner optimizer does."""
        self.inner.zero_grad(set_to_none)

    def parameters(self) -> list[nn.Parameter]:
        """The parameters of all groups that have a gradient."""
        return [p for group in self.inner.param_groups for p in group["params"] if p.grad is not None]

    def _layers(self) -> Iterator[Optimizer]:
        """What is inside, from the outermost to the innermost."""
        inside = self.inner
        while True:
            yield inside
            if not isinstance(inside, Wrapper):
                return
            inside = inside.inner

    def _refuse_several_gradients(self) -> None:
        for inside in self._layers():
            if isinstance(inside, LBFGS) or (isinstance(inside, Wrapper) and inside.gradients > 1):
                raise TypeError(f"optimizer must take one gradient per step, {type(inside).__name__} takes several")

    # Saving and loading.

    def _mark(self) -> None:
        """Write the wrapper's own numbers into the groups, which all that saves an optimizer keeps."""
        held = {self._key(): type(self).__name__} | {self._key(name): getattr(self, name, None) for name in self.own}
        for group in self.inner.param_groups:
            group.update(held)

    def _key(self, name: str = "") -> str:
        depth = sum(isinstance(inside, Wrapper) for inside in self._layers())
        return f"wrapper{depth}.{name}" if name else f"wrapper{depth}"

    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's state and, in each group, the wrapper's own numbers."""
        for before in self._optimizer_state_dict_pre_hooks.values():
            before(self)
        self._mark()
        state: dict[str, Any] = self.inner.state_dict()
        for after in self._optimizer_state_dict_post_hooks.values():
            replaced = after(self, state)
            state = state if replaced is None else replaced
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from what :meth:`state_dict` returned."""
        state = dict(state_dict)
        for before in self._optimizer_load_state_dict_pre_hooks.values():
            replaced = before(self, state)
            state = state if replaced is None else replaced
        groups = state.get("param_groups") or [{}]
        if not {self._key(), *map(self._key, self.own)} <= set(groups[0]):
            raise ValueError(f"state_dict must come from {type(self).__name__}.state_dict(), this one does not")
        self.inner.load_state_dict(state)
        for name in self.own:
            setattr(self, name, self.inner.param_groups[0][self._key(name)])
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def __getstate__(self) -> dict[str, Any]:
        """All that the wrapper holds, for copies and pickles, but for hooks and what others put before its methods."""
        return {
            name: held
            for name, held in vars(self).items()
            if not (name.startswith("_optimizer_") or callable(getattr(type(self), name, None)))
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        super().__setstate__({})

    def _makes_state(self, closure: Closure | None) -> bool:
        """Whether a step only makes the inner optimizer's state, as ``torch.distributed.checkpoint`` asks it to.

        Such a step is the first one; its learning rates and all its gradients are 0.
        """
        if closure is not None or self.inner.state:
            return False
        if any(bool(group.get("lr", 0) != 0) for group in self.inner.param_groups):
            return False
        gradients = [p.grad for p in self.parameters()]
        return bool(gradients) and not any(bool(g.any()) for g in gradients if g is not None)

    # Beside a GradScaler, which tells an optimizer nothing of itself but by asking for these two attributes.

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Asked by ``GradScaler.step`` at its beginning; False, so that it unscales the gradients itself."""
        given = sys._getframe(1).f_locals
        if isinstance(scaler := given.get("self"), GradScaler):
            if given.get("args"):
                raise RuntimeError(f"{type(self).__name__} takes no closure from a GradScaler: call step() without one")
            self._before_scaled_step(scaler, self)
        return False

    def _unscaled(self, scaler: GradScaler, outermost: Optimizer) -> None:
        """Hear that a scaler is about to unscale the gradients of the outermost wrapper."""
        if isinstance(self.inner, Wrapper):
            self.inner._unscaled(scaler, outermost)

    def _before_scaled_step(self, scaler: GradScaler, outermost: Optimizer) -> None:
        """Hear that a scaler is about to step, or to leave the step out."""
        if isinstance(self.inner, Wrapper):
            self.inner._before_scaled_step(scaler, outermost)

    def __repr__(self) -> str:
        """The wrapper and the optimizer inside."""
        return f"{type(self).__name__}({self.inner!r})"
