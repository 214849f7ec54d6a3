"""The engine: it trains many models at once, each with its own objective, rows, seed and early stopping."""

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import isfinite, prod, sqrt

import torch
from torch import Tensor, nn

from lossworks.comparison.models.architecture import Architecture
from lossworks.comparison.models.scaling import Scaler, TargetScale
from lossworks.comparison.tasks.base import Task
from lossworks.comparison.train.feed import Feed, Order, Table
from lossworks.comparison.train.jobs import Job, Replica, Training, seed_from
from lossworks.comparison.train.packing import (
    EVALUATED_VALUES,
    Unit,
    models_in,
    packed,
    pieces_of,
    taken_by,
    too_large,
    units_of,
)
from lossworks.comparison.train.risk import StackedObjective
from lossworks.comparison.train.stack import LayerStack, ModuleStack, Stack
from lossworks.metrics.registry import Metric
from lossworks.roles import Kind, Part, Perturbation
from lossworks.runs.memory import is_out_of_memory

__all__ = ["Trained", "one_thread", "train"]

Progress = Callable[[int, int, float], None]


@dataclass
class Trained:
    """Trained replicas, each at its best state, in the order of the jobs.

    Attributes:
        curves: For each replica, the pairs ``(step, score)`` of its evaluations; a larger score is better.
        best_step: For each replica, the step with the best score; 0 if no score was finite.
        best_score: For each replica, its best score.
        dropped: For each replica, whether it was dropped from its race.
        architectures: For each replica, its architecture with sizes.
        complete: Whether the training ran to its end and was not ended by ``stop``.
        notes: Sentences about what was unusual.
        parts: The number of parts in which the replicas were trained, one part after the other.
        short: Sentences about a lack of memory.
    """

    curves: list[list[tuple[int, float]]]
    best_step: list[int]
    best_score: list[float]
    dropped: list[bool]
    architectures: list[Architecture]
    complete: bool
    notes: list[str]
    parts: int
    short: list[str]
    _table: Table = field(repr=False)
    _replicas: list[Replica] = field(repr=False)

    def outputs(self, replica: int, rows: Tensor) -> Tensor:
        """The head's outputs for these rows: class logits, scores, or values in the target's unit."""
        module, x = self.module(replica), self._table.x
        at_once = max(1, EVALUATED_VALUES // prod(self._table.shape))
        with torch.inference_mode():
            return torch.cat([module(x.index_select(0, part)) for part in rows.to(x.device).split(at_once)])

    def module(self, replica: int) -> nn.Module:
        """The replica as a plain module in evaluation mode, with its scaler and head."""
        one = self._replicas[replica]
        with torch.random.fork_rng([]):
            network = one.architecture.network().to(self._table.x.device)
        network.load_state_dict(one.best, strict=False)
        return copy.deepcopy(nn.Sequential(one.scaler, network, one.head)).eval()


@dataclass
class _Tile:
    """A tile: replicas whose training steps are taken together."""

    replicas: list[Replica]
    stack: Stack
    feed: Feed
    table: Table

    @property
    def small(self) -> bool:
        """Whether the tile's operations are too small to be worth sharing between threads."""
        return self.replicas[0].architecture.model in ("mlp", "linear")

    @property
    def drawn(self) -> bool:
        """Whether the tile may draw from torch's global generator, and so must not run at the same time as another."""
        parts = [module for module in self.stack.objective.base.modules() if isinstance(module, Part)]
        return not self.small or any(part.stochastic or isinstance(part, Perturbation) for part in parts)

    def keep_going(self) -> bool:
        """Remove the replicas that are done, and return whether any is left."""
        going = [number for number, replica in enumerate(self.replicas) if not replica.done]
        if going and len(going) < len(self.replicas):
            self.replicas = [self.replicas[number] for number in going]
            self.stack.keep(going)
            self.feed.keep(going)
        return bool(going)

    def train(self, begun: int, steps: int, training: Training) -> None:
        """Take this many steps; ``begun`` steps were taken before."""
        torch.manual_seed(seed_from(self.replicas[0].job.seed, 2, begun))
        self.stack.objective.set_progress(begun / training.max_steps)
        for x, batch in self.feed.batches(steps, training.batch_size):
            self.stack.step(x, batch)

    def evaluate(self, step: int, metric: Metric, patience: int) -> None:
        """Score every replica on its inner rows, and keep its state if the score is its best so far."""
        lengths = [len(replica.job.inner) for replica in self.replicas]
        architecture = self.replicas[0].architecture
        longest = max(lengths)
        together = max(1, EVALUATED_VALUES // (longest * architecture.outputs))
        for start in range(0, len(self.replicas), together):
            some = slice(start, min(start + together, len(self.replicas)))
            index = torch.stack([_padded(replica.job.inner, longest) for replica in self.replicas[some]]).to(
                self.table.x.device
            )
            mask = (
                torch.arange(longest, device=index.device) < torch.tensor(lengths[some], device=index.device)[:, None]
            )
            outputs = self._outputs(index, some)
            scores = _scores(metric, outputs, self.table, index, mask)
            finite = torch.where(mask[..., None], outputs, 0).isfinite().flatten(1).all(dim=1)
            for offset, (score, sound) in enumerate(zip(scores.tolist(), finite.tolist(), strict=True)):
                replica = self.replicas[start + offset]
                if replica.note(step, score if sound and isfinite(score) else float("-inf"), patience):
                    replica.best = self.stack.snapshot(start + offset)

    def _outputs(self, index: Tensor, some: slice) -> Tensor:
        """The heads' outputs ``(r, n, k)``; values are in the target's own unit."""
        at_once = max(1, EVALUATED_VALUES // (len(index) * prod(self.table.shape)))
        outputs = torch.cat(
            [self.stack.outputs(self.feed.inputs(rows, some), some) for rows in index.split(at_once, 1)], 1
        )
        if isinstance(self.replicas[0].head, (nn.Identity, nn.Flatten)):  # these heads change no number
            return outputs
        pairs = zip(outputs, self.replicas[some], strict=True)
        return torch.stack([replica.head(output) for output, replica in pairs])[..., None]


def train(
    x: Tensor,
    y: Tensor,
    jobs: Sequence[Job],
    architecture: Architecture,
    training: Training,
    metric: Metric,
    *,
    task: Task,
    group: Tensor | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
    memory: int | None = None,
    finished: Callable[[Trained, Sequence[int]], None] | None = None,
) -> Trained:
    """Train all jobs together, each to its own best state.

    Jobs are stacked and stepped together in tiles if their objectives differ only in the values of their tensors and
    ``vmap`` can stack their networks; other jobs are trained in tiles of their own. The same arguments give
    bit-identical results on one machine; on the CPU, ``"mlp"`` and ``"linear"`` do so for any number of threads. The
    tiles do not depend on ``memory``. Memory only decides how many tiles are trained at the same time, which changes no
    bit of any model.

    Args:
        x: The rows ``(n, *shape)``; they are copied to the device if they are not there, and never again.
        y: The targets ``(n,)`` as the task gives them; if the task scales them, each job's training rows set the scale.
        jobs: The jobs, one for each replica.
        architecture: The architecture of all replicas.
        training: The settings of the training.
        metric: The metric whose score on the inner rows decides which state of a replica is its best. If the metric
            lies in [0, 1], settings that are behind the best of their contest by more than two binomial standard errors
            are dropped at ``race_after``.
        task: The task, which says how many outputs a loss needs and which head reads them.
        group: The group of each row ``(n,)``, int64, for weightings and metrics that need it.
        device: The device to train on.
        progress: Called after each evaluation with the number of steps done, their total and the best score.
        stop: Called before each interval, from any thread; if it returns True, training ends with what is trained.
        memory: About how many bytes may be used at a time besides ``x``. If the models do not fit, they are trained in
            parts, one after the other; settings that race each other are always in the same part. A part that runs
            out of memory all the same is trained again in two halves.
        finished: Called when a part of the jobs is trained, with the results and these jobs' numbers. Their states are
            freed afterwards, so :meth:`Trained.outputs` works for these jobs only during this call.

    Raises:
        MemoryError: memory ran out for models that must be trained at the same time.
    """
    device = torch.device(device)
    _check(x, y, jobs)
    table = Table(x.to(device, torch.float32), y.to(device), None if group is None else group.to(device))
    with _quiet_and_seeded(device), torch.no_grad():
        with _crew() as crew:
            replicas, notes = crew.submit(_replicas, table, jobs, architecture, task).result(), list[str]()
        racing = bool(training.race_after) and metric.bounded01
        pieces = pieces_of(replicas, training, partial(_cannot_stack, table, training), notes)
        waiting = packed(units_of(pieces, racing), training, memory)
        short = too_large(waiting, training, memory)
        total, done, reached, complete, parts = len(replicas) * training.max_steps, 0, 0, True, 0

        def tell(now: int) -> None:
            nonlocal reached
            reached = max(reached, done + now)
            if progress is not None:
                progress(reached, total, max(replica.best_score for replica in replicas))

        while waiting and complete:
            units = waiting.pop(0)
            part = [replica for unit in units for piece in unit for replica in piece]
            ended = _attempt(table, units, training, metric, tell, stop)
            if ended is None:
                for replica in part:
                    replica.begin()
                if table.x.is_cuda:
                    torch.cuda.empty_cache()
                halves = units[: len(units) // 2], units[len(units) // 2 :]
                short.append(
                    f"memory ran out with {models_in(units)} models in training at once: they were trained in parts, "
                    f"which changes no number"
                )
                waiting[:0] = halves
                continue
            complete, done, parts = ended, done + len(part) * training.max_steps, parts + 1
            if finished is not None:
                with torch.enable_grad():
                    so_far = _trained(replicas, table, complete, notes, parts, short)
                    finished(so_far, [replica.number for replica in part])
                for replica in part:
                    replica.best = {}
    return _trained(replicas, table, complete, notes, parts, short)


def _trained(
    replicas: list[Replica], table: Table, complete: bool, notes: list[str], parts: int, short: list[str]
) -> Trained:
    return Trained(
        curves=[replica.curve for replica in replicas],
        best_step=[replica.best_step for replica in replicas],
        best_score=[replica.best_score for replica in replicas],
        dropped=[replica.dropped for replica in replicas],
        architectures=[replica.architecture for replica in replicas],
        complete=complete,
        notes=notes,
        parts=parts,
        short=short,
        _table=table,
        _replicas=replicas,
    )


def _attempt(
    table: Table,
    units: list[Unit],
    training: Training,
    metric: Metric,
    tell: Callable[[int], None],
    stop: Callable[[], bool] | None,
) -> bool | None:
    """Train these units together; return whether they were trained to the end, or None if memory ran out.

    No thread is at work after it returns.
    """
    try:
        with _crew() as crew:
            tiles = [_tile(table, piece, training) for unit in units for piece in unit]
            return _run(tiles, training, metric, _rows_that_count(metric, table), tell, stop, crew)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        if len(units) == 1:
            raise MemoryError(
                f"{models_in(units)} models that must be trained at once take about "
                f"{taken_by(units, training) / 1e6:,.0f} MB, more than there is: use a smaller model or batch"
            ) from error
    return None


def _run(
    tiles: list[_Tile],
    training: Training,
    metric: Metric,
    count: Callable[[Tensor], int],
    tell: Callable[[int], None],
    stop: Callable[[], bool] | None,
    crew: Executor,
) -> bool:
    """Train until every replica is done, and return True; return False if the training was stopped before."""

    def advance(tile: _Tile, begun: int, steps: int) -> bool:
        if stop is not None and stop():
            return False
        with torch.no_grad():
            tile.train(begun, steps, training)
            tile.evaluate(begun + steps, metric, training.patience)
        return True

    replicas = [replica for tile in tiles for replica in tile.replicas]
    race_at, done = training.race_after * training.max_steps, 0
    raced = not race_at or not metric.bounded01
    for begun in range(0, training.max_steps, training.eval_every):
        steps = min(training.eval_every, training.max_steps - begun)
        for tile, advanced in _each(crew, tiles, partial(advance, begun=begun, steps=steps)):
            if not advanced:
                return False
            done += sum(steps + replica.done * (training.max_steps - begun - steps) for replica in tile.replicas)
            tell(done)
        if not raced and begun + steps >= race_at:
            raced = True
            done += len(_race(replicas, count)) * (training.max_steps - begun - steps)
        tiles = [tile for tile in tiles if tile.keep_going()]
    return True


def _each(crew: Executor, tiles: Sequence[_Tile], advance: Callable[[_Tile], bool]) -> Iterator[tuple[_Tile, bool]]:
    """Advance all tiles in parallel, or in turn if they draw from torch's generator; yield whether each advanced."""
    beside = [tile for tile in tiles if not tile.drawn]
    yield from zip(beside, crew.map(advance, beside), strict=True)
    for tile in tiles:
        if tile.drawn:
            yield tile, crew.submit(advance, tile).result() if tile.small else advance(tile)


@contextmanager
def one_thread() -> Iterator[None]:
    """Run each operation in one thread, so that rounding does not depend on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _crew() -> Iterator[Executor]:
    """A pool of as many threads as torch uses within an operation; each thread runs its operations alone.

    A small operation that is shared between threads waits each time for the slowest of them, which on a busy machine
    takes many times as long as the operation.
    """
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as crew:
            yield crew
    finally:
        torch.set_num_threads(threads)


def _race(replicas: Sequence[Replica], count: Callable[[Tensor], int]) -> list[Replica]:
    """Drop the settings that are behind the best of their contest by more than two standard errors, and return them."""
    contests: dict[int, list[Replica]] = {}
    for replica in replicas:
        contests.setdefault(replica.job.contest, []).append(replica)
    dropped = []
    for settings in contests.values():
        best = max(settings, key=lambda replica: replica.best_score)
        if not 0 <= best.best_score <= 1:
            continue
        rows = count(best.job.inner)
        for replica in settings:
            worse = min(max(replica.best_score, 0.0), 1.0)
            error = sqrt(max(p * (1 - p) for p in (best.best_score, worse)) / rows)
            if not replica.done and best.best_score - replica.best_score > 2 * error:
                replica.dropped = replica.done = True
                dropped.append(replica)
    return dropped


def _scores(metric: Metric, outputs: Tensor, table: Table, index: Tensor, mask: Tensor) -> Tensor:
    """Each replica's score on its rows, or the score of its worst group if the metric is one of groups."""
    if not metric.of_groups:
        return metric.score(outputs, table.y[index], mask)
    group = _groups(table)[index]
    each = []
    for number in group[mask].unique().tolist():
        rows = mask & (group == number)
        scores = metric.score(outputs, table.y[index], rows)
        each.append(torch.where(rows.any(dim=1), scores, torch.inf))
    return torch.stack(each).amin(dim=0)


def _groups(table: Table) -> Tensor:
    if table.group is None:
        raise ValueError("group must be given for a metric of groups, got None")
    return table.group


def _rows_that_count(metric: Metric, table: Table) -> Callable[[Tensor], int]:
    """A function that counts the effective rows for the standard error of the metric.

    They are all rows, or, if the metric weighs classes equally, the rarest class's rows times the number of classes.
    For a metric of groups, it is the smallest such count of any group.
    """

    def count(rows: Tensor) -> int:
        if not metric.by_class:
            return len(rows)
        counts = table.y[rows].bincount()
        present = counts[counts > 0]
        return int(present.min()) * len(present)

    def counted(rows: Tensor) -> int:
        rows = rows.to(table.y.device)
        if not metric.of_groups:
            return count(rows)
        group = _groups(table)[rows]
        return min(count(rows[group == number]) for number in group.unique())

    return counted


@torch.no_grad()
def _replicas(table: Table, jobs: Sequence[Job], architecture: Architecture, task: Task) -> list[Replica]:
    fitted: dict[tuple[int, int, Kind], tuple[Scaler, TargetScale | None]] = {}
    replicas = []
    for number, job in enumerate(jobs):
        loss = job.objective.loss
        key = (job.fit.data_ptr(), len(job.fit), loss.kind)
        if key not in fitted:
            scale = task.scale(loss.kind, table.y, job.fit.to(table.y.device))
            fitted[key] = (Scaler.fit(table.x, job.fit, architecture.scaling), scale)
        sized = architecture.sized(table.shape, task.outputs(loss, table.y), loss.kind)
        scaler, scale = fitted[key]
        head = task.head(loss, sized.outputs, scale).to(table.x.device)
        replicas.append(Replica(number, job, sized, scaler, scale, head))
    return replicas


def _tile(table: Table, replicas: list[Replica], training: Training) -> _Tile:
    networks, objectives = (
        [_initial(replica, table) for replica in replicas],
        [replica.job.objective for replica in replicas],
    )
    kind, outputs = replicas[0].architecture.kind, replicas[0].architecture.outputs
    squeeze = kind.flat and outputs == 1
    options = (networks, objectives, training.lr, training.weight_decay, squeeze)
    by_hand = replicas[0].architecture.layered and StackedObjective(objectives[:1], table.x.device).risk_alone
    stack: Stack = (LayerStack if by_hand else ModuleStack)(*options)
    targets = [replica.target for replica in replicas if replica.target is not None]
    feed = Feed(table, [replica.order for replica in replicas], [replica.scaler for replica in replicas], targets)
    for number, replica in enumerate(replicas):
        replica.best = replica.best or stack.snapshot(number)
    return _Tile(replicas, stack, feed, table)


def _initial(replica: Replica, table: Table) -> nn.Module:
    torch.manual_seed(seed_from(replica.job.seed, 0))
    return replica.architecture.network().to(table.x.device)


def _cannot_stack(table: Table, training: Training, replicas: Sequence[Replica]) -> str:
    """Try to train two of these replicas under ``vmap``, and return why that fails; empty if it works."""
    if len(replicas) < 2:
        return ""
    pair = [copy.copy(replica) for replica in replicas[:2]]
    for replica in pair:
        replica.order = Order(replica.job.fit, torch.Generator().manual_seed(0))
    tile = _tile(table, pair, training)
    try:
        for x, batch in tile.feed.batches(1, training.batch_size):
            tile.stack.step(x, batch)
            tile.stack.outputs(x, slice(0, 2))
    except (RuntimeError, NotImplementedError) as error:
        if is_out_of_memory(error):
            raise
        return str(error).split("\n", maxsplit=1)[0]
    return ""


def _padded(rows: Tensor, length: int) -> Tensor:
    return torch.cat([rows, rows[:1].expand(length - len(rows))])


@contextmanager
def _quiet_and_seeded(device: torch.device) -> Iterator[None]:
    """Restore torch's generators at the end, and suppress the warning about the speed of ``vmap``."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        yield


def _check(x: Tensor, y: Tensor, jobs: Sequence[Job]) -> None:
    if not jobs:
        raise ValueError("jobs must not be empty")
    if y.shape != x.shape[:1]:
        raise ValueError(f"y must have shape ({len(x)},), one target a row of x, got {tuple(y.shape)}")
    for number, job in enumerate(jobs):
        for name, rows in (("fit", job.fit), ("inner", job.inner)):
            if rows.dtype != torch.int64 or rows.ndim != 1 or not len(rows):
                raise ValueError(
                    f"jobs[{number}].{name} must be int64 row numbers, got {rows.dtype} {tuple(rows.shape)}"
                )
        if getattr(job.objective.loss, "reduction", "mean") == "none":
            raise ValueError(f"jobs[{number}].objective must reduce to one number, its loss has reduction='none'")
