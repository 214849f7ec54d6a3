"""Every wrapper's update around plain SGD, written out: what the contract holds its steps to.

An update is given a :class:`lossworks.testing.checks.optimizers.Problem` and the wrapper's setting, and yields the
weights after each of three steps, as one vector in float64. Torch's generator is seeded with a step's number before it.
"""

import math

import torch


def sam(problem, rho=0.05, adaptive=False):
    weights = problem.start()
    for step in range(3):
        weights = weights - problem.lr * worst_gradient(problem, weights, step, rho, adaptive)[1]
        yield weights


def worst_gradient(problem, weights, step, rho, adaptive=False):
    gradient = problem.gradient(weights, step)
    sizes = weights.abs() if adaptive else torch.ones_like(weights)
    away = rho * sizes**2 * gradient / (sizes * gradient).norm()
    return gradient, problem.gradient(weights + away, step)


def gsam(problem, rho=0.05, alpha=0.2, adaptive=False):
    weights = problem.start()
    for step in range(3):
        gradient, worst = worst_gradient(problem, weights, step, rho, adaptive)
        across = gradient - (gradient @ worst) / (worst @ worst) * worst
        weights = weights - problem.lr * (worst - alpha * across)
        yield weights


def rsgs(problem, rho=0.05, alpha=0.2, e0=None):
    weights = problem.start()
    for step in range(3):

        def entropies(at, step=step):
            p = problem.outputs(at, step).softmax(dim=1)
            return -(p * p.log()).sum(dim=1)

        def slope(at, kept, entropies=entropies):
            leaf = at.detach().requires_grad_()
            return torch.autograd.grad(entropies(leaf)[kept].mean(), leaf)[0]

        classes = problem.outputs(weights, step).shape[1]
        limit = 0.4 * math.log(classes) if e0 is None else e0
        kept = entropies(weights) < limit
        assert bool(kept.any()), "the problem must have reliable rows"
        gradient = slope(weights, kept)
        away = weights + rho * gradient / gradient.norm()
        worst = slope(away, kept & (entropies(away) < limit))
        across = gradient - (gradient @ worst) / (worst @ worst) * worst
        weights = weights - problem.lr * (worst - alpha * across)
        yield weights


def annealed_gradient_noise(problem, eta=0.3, gamma=0.55, clip=None):
    weights = problem.start()
    for step in range(3):
        gradient = problem.gradient(weights, step)
        if clip is not None:
            gradient = gradient * min(1.0, clip / (float(gradient.norm()) + 1e-6))
        torch.manual_seed(step)
        noise = torch.cat([torch.randn(shape, dtype=torch.float64).flatten() for shape in problem.shapes])
        weights = weights - problem.lr * (gradient + math.sqrt(eta / (1 + step) ** gamma) * noise)
        yield weights


def ignite(problem, mode="constrained"):
    weights = problem.start()
    constrained = mode == "constrained"
    lam, rho = (1e-3, 0.05) if constrained else (1e-2, 0.2)
    for step in range(3):

        def slope(at, step=step):
            leaf = at.detach().requires_grad_()
            return torch.autograd.grad(problem.outputs(leaf, step).mean(), leaf)[0]

        here = slope(weights)
        there = slope(weights + rho * here / here.norm())
        gradient = problem.gradient(weights, step) + lam * (there - here)
        if constrained:
            lam = max(lam + 1e-3 * (rho * float(here.norm()) - 0.1), 0.0)
        weights = weights - problem.lr * gradient
        yield weights


UPDATES = {
    "AnnealedGradientNoise": annealed_gradient_noise,
    "GSAM": gsam,
    "IGNITE": ignite,
    "RSGS": rsgs,
    "SAM": sam,
}
