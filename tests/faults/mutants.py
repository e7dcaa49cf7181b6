"""Lines of the code broken one at a time, counted by whether the tests notice.

``python -m tests.faults.mutants --count 200`` breaks lines of the clip, the step,
packing and the statistics: it swaps an operator, shifts a number, negates a condition
or leaves out a statement. The tests of the module then run until one of them fails. A
break that none of them notices is printed with its line; the command fails where more
than one in twenty goes unnoticed. ``--only cwgnc_train.data`` breaks some modules only.
"""

import argparse
import ast
import collections
import concurrent.futures
import copy
import importlib.abc
import importlib.util
import multiprocessing
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

# What every transformation does: its defaults, and the numbers that it takes.
_EVERY = ("tests/test_defaults.py", "tests/composition/test_numbers.py")
TESTS = {
    "cwgnc_jax._clipping": (
        *("tests/test_clipping.py", "tests/test_thresholds.py", *_EVERY),
        *("tests/test_nonfinite.py", "tests/test_compiled_clip.py"),
        *("tests/test_stacked_axes.py", "tests/test_components.py"),
    ),
    "cwgnc_jax._norms": (
        *("tests/test_norms.py", "tests/test_clipping.py"),
        "tests/test_stacked_axes.py",
        *("tests/test_sharded_clip.py", *_EVERY),
    ),
    "cwgnc_jax._thresholds": (
        *("tests/test_thresholds.py", "tests/test_learned.py", *_EVERY),
    ),
    "cwgnc_jax._adam": ("tests/test_adam.py", *_EVERY),
    "cwgnc_jax._adaptive": (
        *("tests/test_adaptive.py", "tests/test_learned.py", *_EVERY),
    ),
    "cwgnc_jax._learned": (
        *("tests/test_adaptive.py", "tests/test_learned.py"),
        *("tests/test_outliers.py", *_EVERY),
    ),
    "cwgnc_jax._outliers": (
        *("tests/test_outliers.py", "tests/test_learned.py", *_EVERY),
    ),
    "cwgnc_jax._spikes": ("tests/test_spikes.py", *_EVERY),
    "cwgnc_train.engine.step": (
        "tests/train/engine/test_step.py",
        "tests/train/engine/test_accumulation.py",
        "tests/train/engine/test_nonfinite.py",
        "tests/train/engine/test_regularization.py",
        "tests/train/engine/test_learned_clips.py",
    ),
    "cwgnc_train.engine.component_statistics": (
        "tests/train/engine/test_component_statistics.py",
    ),
    "cwgnc_train.data.packing": ("tests/train/data/test_packing.py",),
    "cwgnc_train.data.gather": ("tests/train/data/test_packing.py",),
    "cwgnc_train.data.order": ("tests/train/data/test_packing.py",),
    "cwgnc_train.analysis.score_statistics": (
        "tests/train/analysis/test_score_statistics.py",
    ),
    "cwgnc_train.analysis.convergence": ("tests/train/analysis/test_racing.py",),
}
"""The modules that are broken, and the tests that are to notice."""

# Imported once, before anything of ours.
_PRELOADED = (
    *("jax.experimental.multihost_utils", "flax.nnx", "optax", "chex", "equinox"),
    *(
        "torch",
        "transformers",
        "scipy.stats",
        "sklearn.metrics",
        "pandas",
        "hypothesis",
    ),
    *("orbax.checkpoint.experimental.v1", "matplotlib.pyplot", "pytest"),
)
_ROOT = Path(__file__).parents[2]
_HANGS = 3.0
"""A break with which the tests take so many times as long as without one, and a minute,
is noticed by whoever waits for them."""
_SWAPS = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt},
    **{ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In},
    **{ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or, ast.Or: ast.And},
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult},
    **{ast.FloorDiv: ast.Mult, ast.Mod: ast.Add, ast.Pow: ast.Mult},
    **{ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd},
}


def breaks(tree: ast.Module) -> Iterator[tuple[int, ast.Module]]:
    """Yields each way to break one line of a module: the line, and the module."""
    for number, node in enumerate(_code(tree)):
        if _broken(node) is not None:
            changed = copy.deepcopy(tree)
            target = list(_code(changed))[number]
            _broken(target, in_place=True)
            yield node.lineno, ast.fix_missing_locations(changed)


def _code(node: ast.AST) -> Iterator[ast.AST]:
    """Yields the nodes of code whose change can change what the code does.

    That is no docstring, annotation or message, no import for type checkers, and none
    of the arguments by which a ``zip`` checks itself, a class its assignments, and
    ``jax.jit`` how it writes a program down.
    """
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns") or isinstance(node, ast.Raise):
            continue
        if isinstance(node, ast.keyword) and node.arg in ("strict", "frozen", "inline"):
            continue
        children = value if isinstance(value, list) else [value]
        for child in children:
            if isinstance(child, ast.AST) and not _is_for_type_checkers(child):
                yield child
                yield from _code(child)


def _is_for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def _broken(node: ast.AST, in_place: bool = False) -> ast.AST | None:
    """Returns a broken copy of a node, or None if there is no way to break it."""
    changed = node if in_place else copy.copy(node)
    match changed:
        case ast.Compare(ops=[operator]) if type(operator) in _SWAPS:
            changed.ops = [_SWAPS[type(operator)]()]
        case ast.BinOp() | ast.BoolOp() if type(changed.op) in _SWAPS:
            changed.op = _SWAPS[type(changed.op)]()
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            changed.operand = ast.UnaryOp(changed.op, changed.operand)
        case ast.Constant(value=bool()):
            changed.value = not changed.value
        case ast.Constant(value=int() | float()):
            changed.value = changed.value + 1
        case ast.IfExp() | ast.If():
            changed.test = ast.UnaryOp(ast.Not(), changed.test)
        case ast.Expr(value=ast.Call()):
            changed.value = ast.Constant(None)
        case _:
            return None
    return changed


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Lets one module be imported broken."""

    def __init__(self, module: str, path: Path, tree: ast.Module):
        self._module, self._path, self._tree = module, path, tree

    def find_spec(self, name, path=None, target=None):
        if name != self._module:
            return None
        return importlib.util.spec_from_loader(name, self, origin=str(self._path))

    def get_filename(self, fullname):
        return str(self._path)

    def get_data(self, path):
        return self._path.read_bytes()

    def get_code(self, fullname):
        return compile(self._tree, str(self._path), "exec")


def run_tests(module: str, tree: ast.Module, log: Path, programs: Path) -> None:
    """The process: the tests of a module, until one fails."""
    os.environ["CWGNC_JAX_TEST_PROGRAMS"] = str(programs)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    import pytest

    sys.meta_path.insert(0, _Finder(module, _source(module), tree))
    # Plugins of pytest have been imported before it.
    quiet = [
        "-W",
        "ignore::pytest.PytestAssertRewriteWarning",
        "-p",
        "no:cacheprovider",
    ]
    sys.exit(pytest.main(["-x", "-q", *quiet, *TESTS[module]]))


def _source(module: str) -> Path:
    folder = _ROOT / "train" if module.startswith("cwgnc_train") else _ROOT
    return folder.joinpath(*module.split(".")).with_suffix(".py")


class Mutants:
    """Tests of broken modules, in processes that share what they import and compile.

    Args:
      folder: Where logs and compiled programs are written.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        os.environ |= {
            # JAX says at each fork that it has threads; in the parent it has none.
            "PYTHONWARNINGS": "ignore::RuntimeWarning",
        }
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(_PRELOADED))

    def time_intact(self, module: str) -> float:
        """Returns the seconds that the tests of a module take without a break."""
        start = time.monotonic()
        log = self._folder / f"{module}.log"
        if self._fail(module, ast.parse(_source(module).read_text()), log, None):
            raise RuntimeError(
                f"the tests of {module} fail without a break:\n{log.read_text()}"
            )
        return time.monotonic() - start

    def is_noticed(self, module: str, tree: ast.Module, intact: float) -> bool:
        """Says whether the tests of a module fail with this tree in its place.

        Args:
          module: The module's name.
          tree: The broken module.
          intact: The seconds that the tests take without a break.
        """
        log = self._folder / f"{threading.get_ident()}.log"
        return self._fail(module, tree, log, 60 + _HANGS * intact)

    def _fail(
        self, module: str, tree: ast.Module, log: Path, seconds: float | None
    ) -> bool:
        # Two processes may not write to one folder.
        programs = self._folder / f"programs-{threading.get_ident()}"
        process = self._context.Process(
            target=run_tests, args=(module, tree, log, programs)
        )
        process.start()
        process.join(seconds)
        if process.is_alive():
            process.kill()
            process.join()
        # A break may crash the process as well, which is below zero.
        assert process.exitcode is not None
        if process.exitcode > 2:
            raise RuntimeError(f"the tests of {module} did not run:\n{log.read_text()}")
        return process.exitcode != 0


def drawn_breaks(
    modules: list[str], count: int, seed: int
) -> list[tuple[str, int, ast.Module]]:
    """Draws lines to break, each once and in one way."""
    rng, lines = random.Random(seed), collections.defaultdict(list)
    for module in modules:
        for line, tree in breaks(ast.parse(_source(module).read_text())):
            lines[module, line].append(tree)
    chosen = rng.sample(sorted(lines), min(count, len(lines)))
    return [(module, line, rng.choice(lines[module, line])) for module, line in chosen]


def main() -> int:
    """Prints what went unnoticed and the counts; 1 if it is more than 1 in 20."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="", help="how the modules' names begin")
    arguments = parser.parse_args()
    modules = [name for name in TESTS if name.startswith(arguments.only)]
    if not modules:
        parser.error(f"no module begins so; there are {', '.join(TESTS)}")
    drawn = drawn_breaks(modules, arguments.count, arguments.seed)
    counts: collections.Counter[tuple[str, bool]] = collections.Counter()
    with (
        tempfile.TemporaryDirectory() as folder,
        concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool,
    ):
        mutants = Mutants(Path(folder))
        intact = pool.map(mutants.time_intact, modules)
        seconds = dict(zip(modules, intact, strict=True))

        def noticed(drawn: tuple[str, int, ast.Module]) -> bool:
            module, _, tree = drawn
            return mutants.is_noticed(module, tree, seconds[module])

        for (module, line, tree), found in zip(
            drawn, pool.map(noticed, drawn), strict=True
        ):
            counts[module, found] += 1
            if not found:
                old, new = _changed_line(module, tree)
                print(f"unnoticed: {module}:{line}: {old}\n  as {new}", flush=True)
    for module in modules:
        good, bad = counts[module, True], counts[module, False]
        print(f"{module:44}{good:4} of {good + bad:4} noticed")
    bad = sum(number for (_, found), number in counts.items() if not found)
    print(f"{len(drawn) - bad} of {len(drawn)} breaks noticed")
    return int(bad > len(drawn) / 20)


def _changed_line(module: str, tree: ast.Module) -> tuple[str, str]:
    """Returns the part of a statement that is broken, as it was and as it is."""
    intact, broken = (
        ast.unparse(code).splitlines()
        for code in (ast.parse(_source(module).read_text()), tree)
    )
    lines = zip(intact, broken, strict=True)
    old, new = next((old, new) for old, new in lines if old != new)
    same = len(os.path.commonprefix([old, new]))
    part = slice(max(0, same - 40), same + 40)
    return old[part].strip(), new[part].strip()


if __name__ == "__main__":
    sys.exit(main())
