"""Closed-loop simulation: what a policy does to the system that it controls."""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lossworks.checks import check_floating, check_function, check_int, taken
from lossworks.diagnose.drawing import axes
from lossworks.roles import cite

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Rollout", "closed_loop_rollout"]


class Rollout(NamedTuple):
    """The states of all runs, ``(steps + 1, n, d)`` with the initial ones first, and the inputs, ``(steps, n, m)``."""

    states: Float[Tensor, "steps1 n d"]
    inputs: Float[Tensor, "steps n m"]

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw each state's mean over the runs, in a band from the least to the greatest value."""
        ax = axes(ax)
        steps = range(len(self.states))
        for number, state in enumerate(self.states.double().numpy(force=True).transpose(2, 0, 1)):
            (line,) = ax.plot(steps, state.mean(axis=1), label=f"state {number}")
            ax.fill_between(steps, state.min(axis=1), state.max(axis=1), color=line.get_color(), alpha=0.2, linewidth=0)
        ax.set(xlabel="step", ylabel="state")
        ax.legend()
        return ax


@cite("makdah2021lipschitz", helps=("attacks",))
@torch.no_grad()
def closed_loop_rollout(
    policy: Callable[[Tensor], Tensor],
    dynamics: Callable[[Tensor, Tensor], Tensor],
    state: Float[Tensor, "n d"],
    steps: int,
    *,
    disturbance: Float[Tensor, "steps n d"] | None = None,
) -> Rollout:
    r"""Closed-loop rollout: simulate a system under a policy that sees each state with an error.

    .. math::
        s_{t+1} = f(s_t, a_t), \qquad a_t = \pi(s_t + e_t)

    Args:
        policy: :math:`\pi`, from states ``(n, d)`` to inputs ``(n, m)`` or ``(n,)``.
        dynamics: f, from states ``(n, d)`` and inputs ``(n, m)`` to the next states ``(n, d)``.
        state: The initial state of each run, ``(n, d)``.
        steps: The number of time steps, >= 1.
        disturbance: e, ``(steps, n, d)``, added to the states that the policy sees; none by default.

    Returns:
        The states and inputs, without gradients.

    Raises:
        ValueError: shapes that don't match, ``steps < 1``, a policy or dynamics that fails or gives other shapes.
        TypeError: a policy or dynamics that cannot be called, states or inputs that are not floating-point.

    Papers: makdah2021lipschitz

    >>> run = closed_loop_rollout(lambda s: -s / 2, lambda s, a: s + a, torch.tensor([[8.0]]), 3)
    >>> run.states.flatten()
    tensor([8., 4., 2., 1.])
    """
    check_function("policy", policy, "a state")
    check_function("dynamics", dynamics, "a state and an action")
    check_floating("state", state)
    if state.ndim != 2:
        raise ValueError(f"state must have shape (n, d), got {tuple(state.shape)}")
    check_int("steps", steps, low=1)
    if disturbance is not None:
        check_floating("disturbance", disturbance)
        if disturbance.shape != (steps, *state.shape):
            raise ValueError(f"disturbance must have shape {(steps, *state.shape)}, got {tuple(disturbance.shape)}")
    states, inputs = [state], []
    for step in range(steps):
        seen = states[-1] if disturbance is None else states[-1] + disturbance[step]
        with taken(f"policy must take states of shape {tuple(state.shape)}"):
            given = policy(seen)
        check_floating("policy's inputs", given)
        if given.ndim not in (1, 2) or len(given) != len(state):
            raise ValueError(f"policy must give inputs (n, m) or (n,) with n = {len(state)}, got {tuple(given.shape)}")
        inputs.append(given[:, None] if given.ndim == 1 else given)
        with taken(f"dynamics must take states {tuple(state.shape)} and inputs {tuple(inputs[-1].shape)}"):
            following = dynamics(states[-1], inputs[-1])
        check_floating("dynamics' states", following)
        if following.shape != state.shape:
            raise ValueError(f"dynamics must give states {tuple(state.shape)}, they gave {tuple(following.shape)}")
        states.append(following)
    return Rollout(torch.stack(states), torch.stack(inputs))
