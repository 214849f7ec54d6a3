"""The role of a wrapper around any torch optimizer."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import nn
from torch.optim import Optimizer

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
    own: ClassVar[tuple[str, ...]] = ()
    """The attributes that the wrapper adds to the inner optimizer's state."""
    asks_rows: ClassVar[bool] = False
    """Whether it evaluates the model on rows itself, so that it must be given whole batches."""
    stochastic: ClassVar[bool] = False
    """Whether it draws random numbers."""
    takes_outputs: ClassVar[bool] = False
    """Whether the closure of ``step`` gives the model's outputs, and not the loss after its ``backward``."""
    role: ClassVar[str] = "optimizer"

    def __init__(self, optimizer: Optimizer) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be a torch optimizer, got {type(optimizer).__name__}")
        super().__init__(optimizer.param_groups, dict(optimizer.defaults))
        self.inner = optimizer
        self._follow()

    def _follow(self) -> None:
        self.param_groups, self.state = self.inner.param_groups, self.inner.state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group to the inner optimizer."""
        if "inner" not in self.__dict__:  # while it is built
            super().add_param_group(param_group)
            return
        self.inner.add_param_group(param_group)
        self._follow()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, as the inner optimizer does."""
        self.inner.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's state and the wrapper's own."""
        return {**self.inner.state_dict(), "wrapper": {name: getattr(self, name) for name in self.own}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from what :meth:`state_dict` returned."""
        if "wrapper" not in state_dict or set(state_dict["wrapper"]) != set(self.own):
            raise ValueError(f"state_dict must come from {type(self).__name__}.state_dict(), this one does not")
        self.inner.load_state_dict({name: value for name, value in state_dict.items() if name != "wrapper"})
        for name, value in state_dict["wrapper"].items():
            setattr(self, name, value)
        self._follow()

    def __getstate__(self) -> dict[str, Any]:
        """All that the wrapper holds, for copies and pickles; torch keeps an optimizer's groups and state alone."""
        return {name: held for name, held in vars(self).items() if name not in ("param_groups", "state")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._follow()
        super().__setstate__({})

    def parameters(self) -> list[nn.Parameter]:
        """The parameters of all groups that have a gradient."""
        return [p for group in self.param_groups for p in group["params"] if p.grad is not None]

    def __repr__(self) -> str:
        """The wrapper and the optimizer inside."""
        return f"{type(self).__name__}({self.inner!r})"
