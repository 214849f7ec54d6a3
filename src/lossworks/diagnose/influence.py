"""Influence functions: how far a training row moves a model's loss on other rows, and which labels to doubt for it."""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from lossworks.checks import check_choice, check_classes, check_floating, check_int, check_positive, check_tensor
from lossworks.diagnose.curvature import AT_ONCE, METHODS, Curvature
from lossworks.objective.states import resting
from lossworks.roles import cite

__all__ = ["InfluenceRelabeler", "influence_matrix", "influence_review_queue", "self_influence"]

CROSS_ENTROPY = partial(F.cross_entropy, reduction="none")
RULES = ("net_sign", "majority")


@cite("koh2017influence", "banerjee2024inffeed", helps=("noisy labels", "outliers"))
def influence_matrix(
    model: nn.Module,
    x: Shaped[Tensor, "N *features"],
    target: Shaped[Tensor, "N *classes"],
    x_test: Shaped[Tensor, "T *features"],
    target_test: Shaped[Tensor, "T *classes"],
    *,
    loss: Callable[[Tensor, Tensor], Float[Tensor, " n"]] = CROSS_ENTROPY,
    damping: float | Tensor = 1e-2,
    curvature: str = "gauss_newton",
    method: str = "exact",
    steps: int = 1000,
    tol: float = 1e-6,
    batch_size: int = 256,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "T N"]:
    r"""Influence functions: how much each training row, were it given more weight, would raise each test row's loss.

    .. math::
        I(z_j \to t) = -\nabla \ell(t)^\top H^{-1} \nabla \ell(z_j), \qquad
        H = \frac1N \sum_i \nabla^2 \ell(z_i) + \lambda I

    A row with influence below 0 helps, one above 0 harms. Where the model is the minimum of
    :math:`\frac1N \sum_i \ell(z_i) + \frac\lambda2 \|\theta\|^2`, the loss of t changes by about
    :math:`-I(z_j \to t) / N` when row j is left out of the sum. That is true to first order, and less accurate the more
    weight a row has. (Some papers use the other sign.) Parameters that don't require gradients are left out, so give a
    network that is frozen up to its last layer, or give that layer and its features.

    Args:
        model: The trained model; each row's output must depend on that row alone. It runs in evaluation mode.
        x: The training rows.
        target: The training rows' targets, as the loss takes them.
        x_test: The rows whose loss is asked about.
        target_test: The targets of ``x_test``.
        loss: A function from outputs and targets to ``(n,)``, such as a lossworks loss with ``reduction="none"``;
            cross-entropy by default.
        damping: :math:`\lambda`, > 0: the weight decay of the training, or a number that makes H invertible.
        curvature: ``"gauss_newton"`` leaves out the model's second derivatives, and so is never negative for a loss
            that is convex in the output; ``"hessian"`` keeps them. For a linear model both are the same.
        method: ``"exact"`` factorises the whole of H; ``"cg"`` uses conjugate gradients; ``"lissa"`` averages the last
            half of a series of steps on batches of rows, which is approximate, and slow where the damping is small
            beside H.
        steps: The largest number of steps of ``"cg"``, or the number of steps of ``"lissa"``.
        tol: The residual at which ``"cg"`` stops, as a share of the gradient, > 0.
        batch_size: The number of rows computed at once, and the rows of one step of ``"lissa"``.
        generator: The generator that ``"lissa"`` draws from; torch's own generator by default.

    Returns:
        The influences ``(T, N)``, in the precision of the model.

    Raises:
        ValueError: rows or targets that model and loss don't take or that have no finite loss, a setting out of range,
            ``"exact"`` with more than 10,000 parameters, a damping that leaves H indefinite, too few ``steps``.
        TypeError: a model that is no module.

    Use it for small models and for heads on fixed features. ``"exact"`` takes O(P³ + NP²) time for P parameters. The
    other methods take O(P) memory for each of the T rows, and a pass over training rows for each step.

    Papers: koh2017influence, banerjee2024inffeed

    >>> model = nn.Linear(1, 2, bias=False).requires_grad_()
    >>> _ = model.weight.data.zero_()
    >>> x, target = torch.tensor([[1.0], [2.0]]), torch.tensor([0, 0])
    >>> influence_matrix(model, x, target, torch.tensor([[1.0], [1.0]]), torch.tensor([0, 1]), damping=0.75)
    tensor([[-0.2500, -0.5000],
            [ 0.2500,  0.5000]])
    """
    with resting(model), torch.no_grad():
        bent = Curvature(model, x, target, loss, damping=damping, curvature=curvature, batch_size=batch_size)
        bent.checked("x_test", x_test, "target_test", target_test)
        solve = bent.solver(method, steps=steps, tol=tol, generator=generator)
        return _influence(bent, solve, x_test, target_test).to(bent.flat.dtype)


@cite("koh2017influence", "banerjee2024inffeed", helps=("noisy labels", "outliers"))
def self_influence(
    model: nn.Module,
    x: Shaped[Tensor, "N *features"],
    target: Shaped[Tensor, "N *classes"],
    *,
    loss: Callable[[Tensor, Tensor], Float[Tensor, " n"]] = CROSS_ENTROPY,
    damping: float | Tensor = 1e-2,
    curvature: str = "gauss_newton",
    method: str = "exact",
    steps: int = 1000,
    tol: float = 1e-6,
    batch_size: int = 256,
    generator: torch.Generator | None = None,
) -> Float[Tensor, " N"]:
    r"""Self-influence: how much each training row lowers its own loss; the most negative rows are the most suspect.

    .. math:: I(z_j \to z_j) = -\nabla \ell(z_j)^\top H^{-1} \nabla \ell(z_j) \le 0

    It is the diagonal of :func:`influence_matrix`, computed without the rest, and takes the same arguments. Sort it in
    ascending order to get the most suspect rows first: nothing else in the data explains them.

    Args:
        model: The trained model; each row's output must depend on that row alone. It runs in evaluation mode.
        x: The training rows.
        target: The training rows' targets, as the loss takes them.
        loss: A function from outputs and targets to ``(n,)``; cross-entropy by default.
        damping: :math:`\lambda`, > 0.
        curvature: ``"gauss_newton"`` or ``"hessian"``, see :func:`influence_matrix`.
        method: ``"exact"``, ``"cg"`` or ``"lissa"``, see :func:`influence_matrix`.
        steps: The largest number of steps of ``"cg"``, or the number of steps of ``"lissa"``.
        tol: The residual at which ``"cg"`` stops, as a share of the gradient, > 0.
        batch_size: The number of rows computed at once, and the rows of one step of ``"lissa"``.
        generator: The generator that ``"lissa"`` draws from; torch's own generator by default.

    Returns:
        The self-influences ``(N,)``, in the precision of the model; <= 0, except for the noise of ``"lissa"``.

    Raises:
        ValueError: as in :func:`influence_matrix`.
        TypeError: a model that is no module.

    Use it to find mislabelled rows. Rows that are rare but right are suspect too.

    Papers: koh2017influence, banerjee2024inffeed

    >>> model = nn.Linear(1, 2, bias=False).requires_grad_()
    >>> _ = model.weight.data.copy_(torch.tensor([[1.0], [-1.0]]))
    >>> self_influence(model, torch.tensor([[1.0], [1.0], [1.0]]), torch.tensor([0, 0, 1])).argmin()
    tensor(2)
    """
    with resting(model), torch.no_grad():
        bent = Curvature(model, x, target, loss, damping=damping, curvature=curvature, batch_size=batch_size)
        solve = bent.solver(method, steps=steps, tol=tol, generator=generator)
        return _own_influence(bent, solve).to(bent.flat.dtype)


@cite("banerjee2024inffeed", helps=("noisy labels",))
def influence_review_queue(influence: Float[Tensor, "T N"]) -> Int[Tensor, " m"]:
    r"""Review queue: the rows of doubtful labels that a person should look at, the most harmful first.

    .. math:: \Big\{ j : \sum_t I(z_j \to t) > 0 \Big\}

    Args:
        influence: The influences of N rows of doubtful labels on T rows of sure labels, from :func:`influence_matrix`
            for a model that was trained on the N rows.

    Returns:
        The numbers of the m <= N rows that do harm in total, int64.

    Raises:
        ValueError: not ``(T, N)``, or not finite.
        TypeError: not floating-point.

    Papers: banerjee2024inffeed

    >>> influence_review_queue(torch.tensor([[-1.0, 2.0, 0.5], [0.5, 1.0, 0.0]]))
    tensor([1, 2])
    """
    _check_influence(influence)
    net = influence.detach().double().sum(dim=0)
    order = net.argsort(descending=True, stable=True)
    return order[net[order] > 0]


class InfluenceRelabeler:
    r"""Influence relabelling: changes a row's label where the rows that influence it most speak against it.

    .. math::
        r_{tj} = \frac{I(z_j \to t)}{\sqrt{-I(z_j \to z_j)}}, \qquad
        \sum_{j \in S_t} r_{tj} > 0 \;\Rightarrow\;
        y_t \leftarrow \arg\max_{c \ne y_t} \sum_{j \in S_t, y_j = c} \max(r_{tj}, 0)

    with :math:`S_t` the k other rows of the largest :math:`|r_{tj}|`. The influences are those of
    :func:`influence_matrix` for a linear softmax head on the features, at its minimum with the penalty
    :math:`\frac\lambda2 \|\theta\|^2`. All labels of a round change together; then the head is trained anew. The paper
    says that a label follows those of its influencers but not how, so the rule is ours. Each influence is divided by
    the root of its row's self-influence (RelatIF). The reason is that at a minimum the gradients of all rows cancel
    except for the penalty, so that without the division a few wrong rows outweigh the others and oppose nearly every
    right label. With more than two classes, a label stays unchanged where no opposing row offers another class.

    Args:
        top_k: How many influencers are counted, >= 1; all other rows if there are fewer. With a small number, one wrong
            row can dominate its neighbours and change their labels.
        rule: ``"net_sign"``, as above, or ``"majority"``, the most frequent label among the influencers, whatever
            their sign; the latter can end with a single class.
        rounds: The number of rounds of training and changing, >= 1; it stops early when nothing changes any more.
        damping: :math:`\lambda`, > 0; 1/N by default.
        method: ``"exact"``, or, for many features times classes, ``"cg"`` or ``"lissa"``.

    Raises:
        ValueError: a setting out of range, features that are not finite or not ``(N, d)``, classes that don't fit.
        TypeError: labels that are not int64.

    Use it on features of about unit scale, such as standardised columns or the last hidden layer of a network, where
    perhaps a quarter of the labels is wrong. Use ``rounds=1`` inside a loop that trains the network anew. It can't see
    errors that a linear head on the features makes too.

    Papers: banerjee2024inffeed, koh2017influence, barshan2020relatif

    >>> features = torch.linspace(-1, 1, 10)[:, None]
    >>> InfluenceRelabeler(top_k=5).relabel(features, torch.tensor([0, 0, 1, 0, 0, 1, 1, 1, 1, 1]))
    tensor([0, 0, 0, 0, 0, 1, 1, 1, 1, 1])
    """

    papers = ("banerjee2024inffeed", "koh2017influence", "barshan2020relatif")
    helps = ("noisy labels",)

    def __init__(
        self,
        top_k: int = 20,
        rule: str = "net_sign",
        rounds: int = 2,
        *,
        damping: float | None = None,
        method: str = "exact",
    ) -> None:
        self.top_k = check_int("top_k", top_k, low=1)
        self.rule = check_choice("rule", rule, RULES)
        self.rounds = check_int("rounds", rounds, low=1)
        self.damping = None if damping is None else float(check_positive("damping", damping))
        self.method = check_choice("method", method, METHODS)

    def relabel(
        self, features: Float[Tensor, "N d"], target: Int[Tensor, " N"], num_classes: int | None = None
    ) -> Int[Tensor, " N"]:
        """The labels after all rounds; by default ``num_classes`` is one more than the largest label."""
        check_floating("features", features)
        if features.ndim != 2 or not len(features):
            raise ValueError(f"features must have shape (N, d) with N >= 1, got {tuple(features.shape)}")
        if not bool(features.isfinite().all()):
            raise ValueError("features must be finite")
        classes = _classes(features, target, num_classes)
        x, labels = features.detach().double(), target
        for _ in range(self.rounds):
            before, labels = labels, self._round(x, labels, classes)
            if torch.equal(before, labels):
                break
        return labels

    def decide(
        self, influence: Float[Tensor, "N N"], target: Int[Tensor, " N"], num_classes: int | None = None
    ) -> Int[Tensor, " N"]:
        """The labels after one change, by the training rows' influences on each other in a model of your own."""
        _check_influence(influence)
        if influence.shape[0] != influence.shape[1]:
            raise ValueError(f"influence must have shape (N, N), got {tuple(influence.shape)}")
        classes = _classes(influence, target, num_classes)
        rows = torch.arange(len(influence), device=influence.device)
        influence = influence.detach().double()
        return self._decided(influence, influence.diagonal(), rows, target, classes)

    def _round(self, x: Tensor, target: Tensor, classes: int) -> Tensor:
        damping = self.damping or 1 / len(x)
        head = penalised_head(x, target, classes, damping)
        with torch.no_grad():
            bent = Curvature(head, x, target, CROSS_ENTROPY, damping=damping)
            solve = bent.solver(self.method)
            whole = _own_influence(bent, solve)
            changed = [
                self._decided(_influence(bent, solve, x[rows], target[rows]), whole, rows, target, classes)
                for rows in torch.arange(len(x), device=x.device).split(max(1, AT_ONCE // len(x)))
            ]
        return torch.cat(changed)

    def _decided(
        self,
        influence: Float[Tensor, "T N"],
        own_influence: Float[Tensor, " N"],
        rows: Int[Tensor, " T"],
        target: Int[Tensor, " N"],
        classes: int,
    ) -> Int[Tensor, " T"]:
        """The new labels of these rows."""
        own, top = target[rows], min(self.top_k, len(target) - 1)
        size = own_influence.abs().sqrt()
        relative = influence / torch.where(size > 0, size, 1)
        chosen = relative.abs().scatter(1, rows[:, None], -1).topk(top, dim=1).indices  # a row does not vote on itself
        against, offered = relative.gather(1, chosen), target[chosen]
        votes = influence.new_zeros(len(rows), classes)
        if self.rule == "majority":
            votes.scatter_add_(1, offered, torch.ones_like(against))
            votes.scatter_add_(1, own[:, None], votes.new_full((len(rows), 1), 0.5))  # a tie changes nothing
            return votes.argmax(dim=1)
        votes.scatter_add_(1, offered, against.clamp(min=0)).scatter_(1, own[:, None], -1)
        most, other = votes.max(dim=1)
        return torch.where((against.sum(dim=1) > 0) & ((most > 0) | (classes == 2)), other, own)


def _own_influence(bent: Curvature, solve: Callable[[Tensor], Tensor]) -> Float[Tensor, " N"]:
    """The influence on itself of each row of the curvature's data."""
    return torch.cat([-(solve(rows) * rows).sum(dim=1) for rows in bent.gradients(bent.x, bent.target)])


def _influence(bent: Curvature, solve: Callable[[Tensor], Tensor], x: Tensor, target: Tensor) -> Float[Tensor, "T N"]:
    """The influences of the rows of the curvature's data on the given rows."""
    solved = torch.cat([solve(gradients) for gradients in bent.gradients(x, target)])
    return torch.cat([-solved @ gradients.T for gradients in bent.gradients(bent.x, bent.target)], dim=1)


def penalised_head(x: Float[Tensor, "N d"], target: Int[Tensor, " N"], classes: int, damping: float) -> nn.Linear:
    """The linear softmax head at the minimum of its penalised mean loss."""
    head = nn.utils.skip_init(nn.Linear, x.shape[1], classes, dtype=x.dtype, device=x.device)
    parameters = list(head.parameters())
    for parameter in parameters:
        nn.init.zeros_(parameter)
    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=1000,
        history_size=50,
        tolerance_grad=1e-7,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        penalty = sum(parameter.square().sum() for parameter in parameters)
        objective = F.cross_entropy(head(x), target) + damping / 2 * penalty
        objective.backward()
        return objective

    with torch.enable_grad():
        optimizer.step(closure)
    return head


def _classes(rows: Tensor, target: Tensor, num_classes: int | None) -> int:
    """The number of classes, or an error unless the target holds one of them for each row."""
    check_tensor("target", target)
    if num_classes is None:
        num_classes = max(1, 1 + int(target.max())) if target.dtype == torch.int64 and target.numel() else 1
    check_int("num_classes", num_classes, low=1)
    check_classes(rows.new_zeros(()).expand(len(rows), num_classes), target)
    return num_classes


def _check_influence(influence: Tensor) -> None:
    check_floating("influence", influence)
    if influence.ndim != 2:
        raise ValueError(f"influence must have shape (T, N), got {tuple(influence.shape)}")
    if not bool(influence.isfinite().all()):
        raise ValueError("influence must be finite")
