"""Which of a user's items to trust: those whose loss is small compared with the same user's other items."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lossworks.checks import (
    check_floating,
    check_function,
    check_generator,
    check_int,
    check_positive,
    check_tensor,
    readable,
    wide,
)
from lossworks.roles import Selector, cite

__all__ = ["PersonalLossResampler", "personal_loss_weights"]


@cite("zhang2025pld", helps=("noisy labels",))
def personal_loss_weights(losses: Float[Tensor, "n k"], temperature: float | Tensor = 0.1) -> Float[Tensor, "n k"]:
    r"""Weights of each user's items that fall with the items' losses and sum to 1 for the user.

    .. math:: w_{ui} = \frac{e^{-\ell_{ui} / T}}{\sum_{j} e^{-\ell_{uj} / T}}

    Users differ in how large their losses are, so a loss is compared only with those of the same user: adding a
    constant to all of them changes nothing. :class:`PersonalLossResampler` draws items with these probabilities;
    ``(w * losses).sum(dim=1)`` is the expected loss of a drawn item.

    Args:
        losses: ``(n, k)``, the losses of k items that each user took.
        temperature: T, in loss units, > 0. A large T gives equal weights, a small one all weight to the smallest loss.

    Returns:
        ``(n, k)``, at least float32, without a gradient.

    Raises:
        ValueError: ``temperature <= 0``, losses of another shape or not finite.

    Papers: zhang2025pld

    >>> personal_loss_weights(torch.tensor([[1.0, 1.0], [5.0, 9.0]]), temperature=1.0)
    tensor([[0.5000, 0.5000],
            [0.9820, 0.0180]])
    """
    check_floating("losses", losses)
    check_positive("temperature", temperature)
    if losses.ndim != 2 or not losses.shape[1]:
        raise ValueError(f"losses must have shape (n, k) with k >= 1, got {tuple(losses.shape)}")
    if readable(losses) and not bool(losses.isfinite().all()):
        row = int((~losses.isfinite()).any(dim=1).nonzero()[0])
        raise ValueError(f"losses must be finite, got NaN or Inf in row {row}")
    own = wide(losses)
    above = own - own.amin(dim=1, keepdim=True)
    return (-torch.where(above > 0, above / temperature, 0)).softmax(dim=1).detach()


class PersonalLossResampler(Selector):
    r"""Draws one of several items that a user took, preferring items whose loss is small among the user's own.

    .. math::
        P_u(i) = \frac{e^{-\ell_{ui} / T}}{\sum_{j \in K_u} e^{-\ell_{uj} / T}}, \qquad
        i \in K_u, \quad \lvert K_u \rvert = k

    Here :math:`K_u` is a pool of items that user u took.

    The loss of each item in a pool compares it with one item that the user did not take. An item clicked by mistake has
    a larger loss than the user's other items, so it is seldom drawn. Losses are compared within a user, never across
    users, because some users have large losses throughout.

    It draws for the users that it is given, so the parts of a batch that is split get other draws. Each step costs k
    more scores without a gradient.

    Args:
        pool_size: k, >= 1; with 1 there is nothing to choose from.
        temperature: T, in loss units, > 0. Tune it: with a small T the model learns only what it already knows.
        start_epoch: The first epoch, counted from 0, in which losses are used; before it all items are equally likely.
        generator: The random generator for pools and items; torch's global one by default.

    Raises:
        ValueError: ``pool_size < 1``, ``temperature <= 0``, ``start_epoch < 0``, items or losses of another shape, a
            user without items.
        TypeError: users or items that aren't int64.

    Use it for recommendation from clicks and the like, with :class:`lossworks.losses.BPRLoss`, where some clicks were
    mistakes. Not where a user's rare tastes matter: they are learned late, and so are taken for mistakes.

    Papers: zhang2025pld

    >>> resampler = PersonalLossResampler(pool_size=2, temperature=0.01, start_epoch=0)
    >>> users, pool = torch.tensor([0, 1]), torch.tensor([[3, 4], [5, 6]])
    >>> resampler(lambda users, items, others: (items % 2).float(), users, pool, torch.tensor([7, 7]), epoch=0)
    tensor([4, 6])
    """

    papers = ("zhang2025pld",)
    helps = ("noisy labels",)
    rows = ("users", "pool_items", "neg_items")
    stochastic = True

    def __init__(
        self,
        pool_size: int = 5,
        temperature: float | Tensor = 0.1,
        start_epoch: int = 5,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        self.pool_size = check_int("pool_size", pool_size, low=1)
        self.temperature = check_positive("temperature", temperature)
        self.start_epoch = check_int("start_epoch", start_epoch, low=0)
        self.generator = check_generator("generator", generator)

    @torch.no_grad()
    def draw_pool(
        self, users: Int[Tensor, " n"], items: Int[Tensor, " m"], starts: Int[Tensor, " users"]
    ) -> Int[Tensor, "n k"]:
        """Draw a pool of k items for each user, all different where the user took k or more.

        Args:
            users: ``(n,)``, the users.
            items: ``(m,)``, the items that were taken, sorted by user.
            starts: ``(U + 1,)``, where each user's items start in ``items``, followed by m.
        """
        for name, column in (("users", users), ("items", items), ("starts", starts)):
            _check_numbers(name, column)
        if readable(starts) and (
            len(starts) < 2 or bool((starts.diff() < 0).any()) or int(starts[0]) or int(starts[-1]) != len(items)
        ):
            raise ValueError(f"starts must rise from 0 to {len(items)}, the number of items, for one user or more")
        if readable(users) and users.numel() and not 0 <= int(users.min()) <= int(users.max()) < len(starts) - 1:
            raise ValueError(f"users must be in [0, {len(starts) - 1}), got {int(users.min())}..{int(users.max())}")
        first, counts = starts[users], starts.diff()[users]
        if not users.numel():
            return users.new_empty(0, self.pool_size)
        if int(counts.min()) < 1:
            raise ValueError(f"users must have items, but user {int(users[counts.argmin()])} has none")
        widest = max(int(counts.max()), self.pool_size)
        keys = torch.rand(len(users), widest, generator=self.generator, device=users.device)
        # A user with fewer than k items has each place drawn by itself, others have the k items of the largest keys.
        alone = (keys[:, : self.pool_size] * counts[:, None]).long().clamp(max=counts[:, None] - 1)
        missing = torch.arange(widest, device=users.device) >= counts[:, None]
        apart = keys.masked_fill(missing, -1).topk(self.pool_size, dim=1).indices
        places = torch.where(counts[:, None] < self.pool_size, alone, apart)
        return items[first[:, None] + places]

    @torch.no_grad()
    def __call__(
        self,
        loss: Callable[[Tensor, Tensor, Tensor], Float[Tensor, " nk"]],
        users: Int[Tensor, " n"],
        pool_items: Int[Tensor, "n k"],
        neg_items: Int[Tensor, " n"],
        epoch: int,
    ) -> Int[Tensor, " n"]:
        """Draw the item of each user to learn from.

        Args:
            loss: A function of users, items that they took and items that they did not take, ``(n k,)`` each, that
                gives a loss for each.
            users: ``(n,)``, the users.
            pool_items: ``(n, k)``, items that each of them took, see :meth:`draw_pool`.
            neg_items: ``(n,)``, an item that each of them did not take.
            epoch: The epoch, counted from 0.
        """
        check_function("loss", loss, "users and items")
        _check_numbers("users", users)
        _check_numbers("neg_items", neg_items)
        _check_numbers("pool_items", pool_items, ndim=2)
        check_int("epoch", epoch, low=0)
        if pool_items.shape != (len(users), self.pool_size):
            wanted = (len(users), self.pool_size)
            raise ValueError(f"pool_items must have shape {wanted}, got {tuple(pool_items.shape)}")
        if neg_items.shape != users.shape:
            raise ValueError(f"neg_items must have shape {tuple(users.shape)}, got {tuple(neg_items.shape)}")
        if epoch < self.start_epoch:
            chances = torch.ones(pool_items.shape, device=users.device)
        else:
            repeated, others = (column.repeat_interleave(self.pool_size) for column in (users, neg_items))
            losses = loss(repeated, pool_items.flatten(), others)
            check_floating("loss", losses)
            if losses.shape != repeated.shape:
                raise ValueError(f"loss must give {len(repeated)} losses, got {tuple(losses.shape)}")
            chances = personal_loss_weights(losses.reshape(pool_items.shape), self.temperature)
        if not len(users):
            return users.clone()
        drawn = torch.multinomial(chances, 1, generator=self.generator)
        return pool_items.gather(1, drawn)[:, 0]


def _check_numbers(name: str, column: Tensor, ndim: int = 1) -> None:
    """Raise unless ``column`` holds int64 numbers in ``ndim`` dimensions."""
    check_tensor(name, column)
    if column.dtype != torch.int64:
        raise TypeError(f"{name} must be int64, got {column.dtype}")
    if column.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} dimension{'s' if ndim > 1 else ''}, got {tuple(column.shape)}")
