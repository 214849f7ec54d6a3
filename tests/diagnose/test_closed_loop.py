import pytest
import torch
from torch.testing import assert_close

from lossworks.diagnose import closed_loop_rollout

A = torch.tensor([[1.0, 0.1], [0.0, 1.0]], dtype=torch.float64)
B = torch.tensor([[0.0], [0.1]], dtype=torch.float64)
GAIN = torch.tensor([[-1.0, -1.5]], dtype=torch.float64)


def linear(state, given):
    return state @ A.T + given @ B.T


def test_a_linear_loop_is_its_powers_and_what_the_disturbances_add(generator):
    state = torch.randn(3, 2, dtype=torch.float64, generator=generator)
    errors = torch.randn(7, 3, 2, dtype=torch.float64, generator=generator)
    run = closed_loop_rollout(lambda s: s @ GAIN.T, linear, state, 7, disturbance=errors)
    closed = A + B @ GAIN
    power = torch.linalg.matrix_power
    wanted = state @ power(closed, 7).T
    wanted = wanted + sum(errors[t] @ (power(closed, 6 - t) @ B @ GAIN).T for t in range(7))
    assert_close(run.states[-1], wanted)
    assert_close(run.inputs, (run.states[:-1] + errors) @ GAIN.T)
    assert run.states.shape == (8, 3, 2)


def test_nothing_is_added_without_a_disturbance_and_one_input_may_come_flat():
    state = torch.ones(2, 2, dtype=torch.float64)
    run = closed_loop_rollout(lambda s: (s @ GAIN.T)[:, 0], linear, state, 2)
    none = closed_loop_rollout(lambda s: s @ GAIN.T, linear, state, 2, disturbance=torch.zeros(2, 2, 2).double())
    assert_close(run.states, none.states)
    assert run.inputs.shape == (2, 2, 1)


def test_bad_arguments_are_named():
    state = torch.ones(2, 2, dtype=torch.float64)
    with pytest.raises(TypeError, match="policy must be a function"):
        closed_loop_rollout(None, linear, state, 1)
    with pytest.raises(ValueError, match=r"state must have shape \(n, d\)"):
        closed_loop_rollout(linear, linear, state[0], 1)
    with pytest.raises(ValueError, match=r"disturbance must have shape \(2, 2, 2\)"):
        closed_loop_rollout(linear, linear, state, 2, disturbance=state)
    with pytest.raises(ValueError, match=r"dynamics must give states \(2, 2\)"):
        closed_loop_rollout(lambda s: s, lambda s, a: a[0], state, 1)
    with pytest.raises(ValueError, match=r"policy must give inputs \(n, m\) or \(n,\) with n = 2, got \(1, 2\)"):
        closed_loop_rollout(lambda s: s[:1], linear, state, 1)
    with pytest.raises(ValueError, match=r"policy must take states of shape \(2, 2\), which fails \('mat1"):
        closed_loop_rollout(torch.nn.Linear(3, 2).double(), linear, state, 1)
    with pytest.raises(ValueError, match=r"dynamics must take states \(2, 2\) and inputs \(2, 2\), which fails"):
        closed_loop_rollout(lambda s: s, lambda s, a: s @ a[:1], state, 1)
    with pytest.raises(TypeError, match="dynamics' states must be a tensor, got list"):
        closed_loop_rollout(lambda s: s, lambda s, a: [s, a], state, 1)
