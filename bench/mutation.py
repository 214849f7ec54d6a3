"""Mutation testing of the library: places are sampled from all folders, changed one at a time, and the tests are run.

A mutant is a copy of one source file with one small change by an operator of Cosmic Ray: another number, another
arithmetic operator, a comparison turned round, a loop that never runs, a decorator gone. Tests that still pass have
let it survive. `docs/mutation.md` says what was found and how to repeat it.

    pip install -c constraints.txt -e '.[test,mutation]'
    python bench/mutation.py cover     # the suite once, under coverage: which test runs which line, and for how long
    python bench/mutation.py sample    # 1,000 places by a fixed seed
    python bench/mutation.py run       # each mutant against the tests that run its line; can be stopped and resumed
    python bench/mutation.py recheck   # what survived, against the rest of these tests and those beside it

All of it happens in `build/mutation`, on a copy of the last commit.
"""

import argparse
import ast
import contextlib
import gc
import inspect
import json
import multiprocessing
import multiprocessing.connection
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import CodeType, FunctionType

import cosmic_ray.plugins
import coverage
import pytest
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code

LEFT_OUT = ("tests/runs/test_cluster.py", "tests/test_docs.py", "tests/test_examples.py")
# On collection these start the threads of polars, which a forked process would wait for in vain.
APART = tuple(
    f"tests/{name}" for name in ("cli/", "comparison/", "report/", "runs/", "verdict/", "fuzz/", "test_sklearn.py")
)
LONGEST = "tests/testing/test_exactness.py::test_every_part_is_exact_and_the_page_says_so"
OPTIONS = ("-p", "no:cacheprovider", "-m", "not browser", f"--deselect={LONGEST}", *(f"--ignore={p}" for p in LEFT_OUT))
CONTRACT = "tests/testing/test_contract.py"
MEMORY = 12 << 30
RANKS_SECONDS = 8.0


@dataclass(frozen=True)
class Mutant:
    """One change: which operator of Cosmic Ray, and at which of the places in the file where it fits."""

    file: str
    operator: str
    occurrence: int
    line: int
    before: str
    after: str

    @property
    def name(self) -> str:
        return f"{self.file}:{self.operator}:{self.occurrence}"

    @property
    def folder(self) -> str:
        return folder_of(self.file)

    def source(self, original: str) -> str:
        mutated: str = mutate_code(original, cosmic_ray.plugins.get_operator(self.operator)(), self.occurrence)
        return mutated


def folder_of(file: str) -> str:
    """The folder below `src/lossworks`, or a dot for the files beside the folders."""
    parts = Path(file).parts
    return parts[2] if len(parts) > 3 else "."


# Places and their sample


def skipped_lines(source: str) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Where no test could see a change: annotations, and what only a type checker reads."""
    for node in ast.walk(ast.parse(source)):
        hints: list[ast.AST | None] = []
        if isinstance(node, ast.arg | ast.AnnAssign):
            hints = [node.annotation]
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            hints = [node.returns]
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            hints = list(node.body)
        for hint in filter(None, hints):
            yield (hint.lineno, hint.col_offset), (hint.end_lineno, hint.end_col_offset)


def places(root: Path, file: str) -> dict[tuple[object, ...], list[tuple[str, int]]]:
    """Each place of a file with the operators that fit it, so that `+` counts once and not eleven times."""
    source = (root / file).read_text()
    skipped = list(skipped_lines(source))
    nodes = list(ast_nodes(get_ast(source)))
    found = defaultdict(list)
    for name in sorted(cosmic_ray.plugins.operator_names()):
        kind = cosmic_ray.plugins.get_operator(name)
        if kind.arguments():
            continue
        operator = kind()
        spans = (span for node in nodes for span in operator.mutation_positions(node))
        for occurrence, (start, end) in enumerate(spans):
            if not any(first <= start and end <= last for first, last in skipped):
                found[start, end, name.split("_")[0]].append((name, occurrence))
    return found


def first_difference(before: str, after: str) -> tuple[int, str, str]:
    """The number of the first changed line, and this line in both."""
    old, new = before.splitlines(), after.splitlines()
    number = next(i for i, pair in enumerate(zip(old, [*new, ""], strict=False)) if pair[0] != pair[1])
    if len(new) < len(old):  # a decorator is gone, and the empty lines above it
        number = next(i for i in range(number, len(old)) if old[i].strip())
        return number + 1, old[number].strip(), ""
    return number + 1, old[number].strip(), new[number].strip()


def stratified(root: Path, count: int, seed: int) -> list[Mutant]:
    """Places by folder, as many as the folder's share, in an order of which each beginning is such a sample too."""
    draw = random.Random(seed)
    strata = defaultdict(list)
    for path in sorted((root / "src/lossworks").rglob("*.py")):
        file = str(path.relative_to(root))
        strata[folder_of(file)] += [(file, key, fitting) for key, fitting in places(root, file).items()]
    total = sum(map(len, strata.values()))
    ordered = []
    for folder, sites in sorted(strata.items()):
        draw.shuffle(sites)
        share, taken = max(8, count * len(sites) / total), 0
        for file, _, fitting in sites:
            if taken >= share:
                break
            operator, occurrence = draw.choice(fitting)
            original = (root / file).read_text()
            mutated = Mutant(file, operator, occurrence, 0, "", "").source(original)
            if same_program(original, mutated):
                continue
            mutant = Mutant(file, operator, occurrence, *first_difference(original, mutated))
            ordered.append(((taken + draw.random()) / share, mutant))
            taken += 1
        print(f"{folder}: {taken} of {len(sites)} places", flush=True)
    return [mutant for _, mutant in sorted(ordered, key=lambda each: each[0])][:count]


# Code: what differs, and putting it in place of what runs


def compiled(source: str, path: str) -> CodeType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return compile(source, path, "exec", dont_inherit=True)


def inner(code: CodeType) -> list[CodeType]:
    return [const for const in code.co_consts if isinstance(const, CodeType)]


def surface(code: CodeType) -> tuple[object, ...]:
    """What a code object does, without its inner ones and its places in the file."""
    consts = [repr(const) for const in code.co_consts if not isinstance(const, CodeType)]
    head = (code.co_code, consts, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    return (*head, code.co_flags, code.co_argcount, code.co_kwonlyargcount, len(inner(code)))


def changed(old: CodeType, new: CodeType) -> list[tuple[CodeType, CodeType]] | None:
    """The pairs of code objects that differ, themselves or within; None where that is more than functions' bodies."""
    own = surface(old) != surface(new)
    if own and (not old.co_flags & inspect.CO_OPTIMIZED or len(inner(old)) != len(inner(new))):
        return None
    pairs: list[tuple[CodeType, CodeType]] = []
    for old_inner, new_inner in zip(inner(old), inner(new), strict=True):
        below = changed(old_inner, new_inner)
        if below is None:
            return None
        pairs += below
    return [(old, new), *pairs] if own or pairs else []


def same_program(before: str, after: str) -> bool:
    """Whether two sources compile to the same; a source that does not compile is no mutant either."""
    try:
        return changed(compiled(before, ""), compiled(after, "")) == []
    except SyntaxError:
        return True


def identity(code: CodeType) -> tuple[str, str, int]:
    return code.co_filename, code.co_qualname, code.co_firstlineno


def swap(pairs: list[tuple[CodeType, CodeType]], functions: dict[tuple[str, str, int], list[FunctionType]]) -> bool:
    """Give every function that runs an old code the new one; False where none does, or one cannot take it."""
    bodies = [(old, new) for old, new in pairs if old.co_flags & inspect.CO_OPTIMIZED]
    if not bodies or not functions.get(identity(bodies[0][0])):
        return False
    try:
        for old, new in bodies:
            for function in functions.get(identity(old), ()):
                if surface(function.__code__) == surface(old):
                    function.__code__ = new
    except ValueError:  # another number of free variables
        return False
    return True


# Which tests, in which order


@dataclass(frozen=True)
class Tests:
    """What the run under coverage said: the tests of each line, and what each test took."""

    root: Path
    data: coverage.CoverageData
    seconds: dict[str, float]
    setup: dict[str, float]

    @classmethod
    def read(cls, work: Path) -> "Tests":
        data = coverage.CoverageData(str(work / "coverage"))
        data.read()
        seconds: dict[str, float] = defaultdict(float)
        setup: dict[str, float] = defaultdict(float)
        failed = set()
        for line in (work / "durations.jsonl").read_text().splitlines():
            name, when, took, outcome = json.loads(line)
            seconds[name] += took
            if when == "setup" and not name.startswith(CONTRACT):
                setup[name.split("::")[0]] = max(took, setup[name.split("::")[0]])
            if outcome == "failed":
                failed.add(name)
        return cls(work / "tree", data, {k: v for k, v in seconds.items() if k not in failed}, setup)

    def limit(self, name: str) -> int:
        """The seconds after which a test that does not end is killed."""
        return int(15 + 5 * (self.seconds[name] + self.setup[name.split("::")[0]]))

    def mirror(self, file: str) -> str:
        """The file of tests that belongs to a source file."""
        path = Path(file)
        own = path.parent.name if path.name == "__init__.py" else path.stem.strip("_")
        return str(Path("tests", *path.parent.parts[2:], f"test_{own}.py"))

    def of(self, mutant: Mutant) -> list[str]:
        """The tests that run the statement of a mutant: its own file's first."""
        by_line = self.data.contexts_by_lineno(str(self.root / mutant.file))
        names: set[str] = set()
        for line in statement(self.root / mutant.file, mutant.line):
            for context in by_line.get(line, ()):
                names |= self._meant(context)
        if not names:  # run on import, in another process, or never
            names = {name for contexts in by_line.values() for each in contexts for name in self._meant(each)}
            names |= self.beside(mutant.file)
        return self.ordered(names & self.seconds.keys(), (self.mirror(mutant.file), mutant.file))

    def ordered(self, names: set[str], first: tuple[str, ...] = ()) -> list[str]:
        """File by file, so that what a file's tests share is set up once: the given files, then the quickest."""
        files = defaultdict(list)
        for name in names:
            files[name.split("::")[0]].append(name)
        cost = {file: self.setup[file] + sum(self.seconds[n] for n in own) for file, own in files.items()}
        order = sorted(files, key=lambda file: (file not in first, cost[file], file))
        return [name for file in order for name in sorted(files[file], key=lambda n: (self.seconds[n], n))]

    def within(self, names: list[str], cap: float) -> list[str]:
        """The first tests that together take no longer than the cap, and at least one."""
        spent, files = 0.0, set()
        for number, name in enumerate(names):
            file = name.split("::")[0]
            spent += self.seconds[name] + (0 if file in files else self.setup[file])
            files.add(file)
            if number and spent > cap:
                return names[:number]
        return names

    def beside(self, file: str) -> set[str]:
        """The tests of a source file's own file of tests; where there is none, of its folder."""
        mirror = self.mirror(file)
        return self.all_of(mirror) or {name for name in self.seconds if name.startswith(f"{Path(mirror).parent}/")}

    def all_of(self, file: str) -> set[str]:
        return {name for name in self.seconds if name.split("::")[0] == file}

    def _meant(self, context: str) -> set[str]:
        """The test of a context; what a fixture ran, a whole file's tests may look at."""
        name, _, phase = context.rpartition("|")
        return self.all_of(name.split("::")[0]) if phase == "setup" and not name.startswith(CONTRACT) else {name} - {""}


def statement(path: Path, line: int) -> range:
    """The lines of the innermost statement around a line, without the body of a compound one."""
    best = range(line, line + 1)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.stmt) and node.lineno <= line <= (node.end_lineno or node.lineno):
            body = getattr(node, "body", None)
            end = body[0].lineno - 1 if body else node.end_lineno
            if line <= max(end or line, node.lineno):
                best = range(node.lineno, max(end or line, node.lineno) + 1)
    return best


# Runs


class Watch:
    """A plugin that notes the test at work, limits its time, and spares the contract's warming up."""

    def __init__(self, note: Path, limit: Callable[[str], int]) -> None:
        self.note, self.limit = note, limit

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> None:
        self.note.write_text(item.nodeid)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(self.limit(item.nodeid))

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            if item.nodeid.startswith(CONTRACT) and isinstance(item, pytest.Function):
                item.fixturenames[:] = [n for n in item.fixturenames if n not in ("_all_is_loaded", "two_ranks")]


class Durations:
    """A plugin that writes down what each phase of each test took, and how it ended."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps([report.nodeid, report.when, report.duration, report.outcome]) + "\n")


def in_a_fork(work: Callable[[], int], note: Path, log: Path) -> tuple[str, str]:
    """Run in a forked process, in its own group: `passed`, `failed` or `timeout`, and the test that was at work."""
    note.write_text("")
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.setpgid(0, 0)
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(out, 1)
            os.dup2(out, 2)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(120)
            code = int(work())
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM:
        return "timeout", note.read_text()
    return ("passed" if status == 0 else "failed"), note.read_text()


def starts_ranks(item: pytest.Item) -> bool:
    """Whether a test starts processes that a whole run starts once, for all its tests."""
    names = getattr(item, "fixturenames", ())
    return "two_ranks" in names or "three_ranks" in names or "sharded" in item.name


class Warm:
    """A pytest session that has collected everything, and forks a child for each mutant of a function's body."""

    def __init__(self, orders: multiprocessing.connection.Connection, note: Path, log: Path) -> None:
        self.orders, self.note, self.log = orders, note, log

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        functions = defaultdict(list)
        for each in gc.get_objects():
            if type(each) is FunctionType:  # `isinstance` would ask proxies for their class
                functions[identity(each.__code__)].append(each)
        gc.freeze()
        self.orders.send([name for name, item in items.items() if starts_ranks(item)])
        while (order := self.orders.recv()) is not None:
            path, before, after, names = order

            def work(path: str = path, before: str = before, after: str = after, names: list[str] = names) -> int:
                pairs = changed(compiled(before, path), compiled(after, path))
                if pairs is None or (pairs and not swap(pairs, functions)):
                    return 71
                chosen = [items[name] for name in names if name in items]
                for item, following in zip(chosen, [*chosen[1:], None], strict=True):
                    item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                    if session.shouldfail:
                        return 1
                return 0

            self.orders.send(in_a_fork(work, self.note, self.log))
        return True


class Runner:
    """Runs mutants: in the warm session where only a function's body changed, and else in a session of its own."""

    def __init__(self, work: Path, tests: Tests) -> None:
        self.work, self.tests = work, tests
        self.note, self.log = work / "note", work / "log"
        self.options = ["-x", "--capture=sys", "--no-header", "--tb=short", f"--basetemp={work / 'tmp'}", *OPTIONS]
        self.sound: set[tuple[bool, str]] = set()
        self.unsound: set[str] = set()
        self.orders, theirs = multiprocessing.Pipe()
        if os.fork() == 0:
            watch, warm = Watch(self.note, tests.limit), Warm(theirs, self.note, self.log)
            apart = (f"--ignore={each.rstrip('/')}" for each in APART)
            os._exit(pytest.main([*self.options, *apart, "tests", "src"], plugins=[watch, warm]))
        theirs.close()
        for name in self.orders.recv():
            if name in tests.seconds:
                tests.seconds[name] += RANKS_SECONDS

    def close(self) -> None:
        self.orders.send(None)

    def _try(self, file: str, before: str, after: str, names: list[str], warm: bool) -> tuple[str, str]:
        path = self.work / "tree" / file
        try:
            path.write_text(after)
            if warm:
                self.orders.send((str(path), before, after, names))
                outcome: tuple[str, str] = self.orders.recv()
                return outcome

            def fresh() -> int:
                return int(pytest.main([*self.options, *names], plugins=[Watch(self.note, self.tests.limit)]))

            return in_a_fork(fresh, self.note, self.log)
        finally:
            path.write_text(before)

    def result(self, mutant: Mutant, cap: float, earlier: dict[str, object] | None) -> dict[str, object]:
        """The outcome of one mutant: killed (by which test), timeout, or survived."""
        before = (self.work / "tree" / mutant.file).read_text()
        after = mutant.source(before)
        chosen = [name for name in self.tests.of(mutant) if name not in self.unsound]
        if earlier:  # the tests that it has survived stand first
            extra = self.tests.beside(mutant.file) - set(chosen) - self.unsound
            chosen = [*chosen[int(str(earlier["ran"])) :], *self.tests.ordered(extra)]
        names = self.tests.within(chosen, cap)
        path = str(self.work / "tree" / mutant.file)
        warm = changed(compiled(before, path), compiled(after, path)) is not None
        outcome, test, batches = "passed", "", batched(names, warm)
        for warm, batch in batches:
            outcome, test = self._try(mutant.file, before, after, batch, warm)
            if outcome == "failed" and not test and warm:  # nothing live to swap
                warm = False
                outcome, test = self._try(mutant.file, before, after, batch, warm)
            if outcome != "passed":
                break
        if outcome != "passed" and (warm, test) not in self.sound:
            again, culprit = self._try(mutant.file, before, before, until(batch, test), warm)
            if again != "passed":
                if not culprit:  # one of them is not there in every process
                    self.unsound |= set(until(batch, test))
                    return self.result(mutant, cap, earlier)
                self.unsound.add(culprit)
                print(f"  unsound: {culprit}", flush=True)
                return self.result(mutant, cap, earlier)
            if test:
                self.sound.add((warm, test))
        said = {"passed": "survived", "failed": "killed"}.get(outcome, outcome)
        return {"outcome": said, "test": test if said != "survived" else "", "ran": len(names), "of": len(chosen)}


def until(names: list[str], last: str) -> list[str]:
    """The tests up to this one, all of them where none was at work."""
    return names[: names.index(last) + 1] if last else names


def batched(names: list[str], warm: bool) -> list[tuple[bool, list[str]]]:
    """The tests by the session that can run them, in the order of their first."""
    batches: dict[bool, list[str]] = {}
    for name in names:
        batches.setdefault(warm and not name.startswith(APART), []).append(name)
    return list(batches.items())


def results(work: Path) -> dict[str, dict[str, object]]:
    """The last result of each mutant."""
    path = work / "results.jsonl"
    lines = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
    return {f"{each['file']}:{each['operator']}:{each['occurrence']}": each for each in lines}


def is_due(earlier: dict[str, object] | None, rest: bool) -> bool:
    """Whether a mutant with this result so far is run: once, and once more against the rest where it survived."""
    if earlier is None:
        return not rest
    return rest and earlier["outcome"] == "survived" and not earlier["rest"]


def run(work: Path, cap: float, rest: bool, only: str) -> None:
    """Run what has no result yet, or what survived once more."""
    os.environ.update(PYTHONPATH=f"{work / 'tree/src'}:{work / 'tree'}", PYTHONDONTWRITEBYTECODE="1")
    sys.dont_write_bytecode = True
    sys.path[:0] = [str(work / "tree/src"), str(work / "tree"), str(work / "tree/docs")]
    os.chdir(work / "tree")
    for heavy in ("torch", "numpy", "polars", "scipy.stats", "sklearn.linear_model", "pyarrow", "pandas"):
        __import__(heavy)
    sample = [Mutant(**json.loads(line)) for line in (work / "sample.jsonl").read_text().splitlines()]
    done = results(work)
    due = [each for each in sample if only in each.name and is_due(done.get(each.name), rest)]
    runner = Runner(work, Tests.read(work))
    for number, mutant in enumerate(due, 1):
        result = runner.result(mutant, cap, done.get(mutant.name))
        with (work / "results.jsonl").open("a") as file:
            file.write(json.dumps(asdict(mutant) | result | {"rest": rest}) + "\n")
        print(f"{number}/{len(due)} {result['outcome']} {mutant.file}:{mutant.line} {result['test']}", flush=True)
    runner.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["cover", "sample", "run", "recheck"])
    parser.add_argument("--work", type=Path, default=Path("build/mutation"))
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=16)
    parser.add_argument("--cap", type=float, default=20.0, help="seconds of tests for a mutant, as measured by cover")
    parser.add_argument("--only", default="", help="mutants whose name has this in it")
    given = parser.parse_args()
    work = given.work.resolve()
    if given.step == "cover":
        cover(work)
    elif given.step == "sample":
        sample = stratified(work / "tree", given.count, given.seed)
        (work / "sample.jsonl").write_text("".join(json.dumps(asdict(each)) + "\n" for each in sample))
    else:
        run(work, given.cap, given.step == "recheck", given.only)


def cover(work: Path) -> None:
    """Copy the last commit, and run its tests once with the name of the test as coverage's context."""
    tree = work / "tree"
    shutil.rmtree(work, ignore_errors=True)
    tree.mkdir(parents=True)
    archive = subprocess.run(["git", "archive", "HEAD"], check=True, stdout=subprocess.PIPE).stdout
    subprocess.run(["tar", "-x", "-C", tree], input=archive, check=True)
    (work / "coveragerc").write_text(f"[run]\nsource = lossworks\ndata_file = {work / 'coverage'}\n")
    os.environ["PYTHONPATH"] = f"{tree / 'src'}:{tree}"
    sys.path[:0] = [str(tree / "src"), str(tree)]
    os.chdir(tree)
    measure = ["--cov=lossworks", "--cov-context=test", f"--cov-config={work / 'coveragerc'}", "--cov-report="]
    pytest.main([*OPTIONS, *measure, "tests", "src"], plugins=[Durations(work / "durations.jsonl")])


if __name__ == "__main__":
    main()
