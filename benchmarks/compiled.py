"""What XLA makes of our programs for accelerators that are not here: estimates.

    python -m benchmarks.compiled [--on h100 v5e ...] [--models base large ...]
        [--quick] [--text FOLDER] [--earlier FILE] [--json FILE]

Each program is compiled by the accelerator's own compiler, in a process of its own. The
text of the compiled program says which kernels run, what they move and multiply, and
which collectives there are; the compiler says what memory is taken. A GPU's kernel is
priced by a roofline, a TPU's by the compiler's own cycles, as
``cwgnc_train.plan.costs`` has it. None of it is a measurement. With --json a page is
written beside the file; rows that the file holds from before are kept, and those of
this commit are not compiled again.
"""

import argparse
import concurrent.futures
import dataclasses
import importlib.metadata
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

import cwgnc_jax
from benchmarks.compiled_page import page
from benchmarks.compiled_rows import MODELS, STEPS, Row, all_rows
from benchmarks.measure import commit, machine, publish
from benchmarks.training import LENGTH, step_config
from cwgnc_train.engine import Layout, make_mesh
from cwgnc_train.plan import (
    ACCELERATORS,
    Costs,
    Slice,
    abstract_runs,
    compile_for,
    devices_of,
    estimate,
    find_slice,
    lower_evaluation,
    lower_train_steps,
    read_program,
    without_devices,
)

EXAMPLES = 2490  # RTE's.
MATMUL = {"float32": "highest", "tf32": "default", "bfloat16": "default"}


def measure(row: Row, text: Path | None = None) -> dict[str, Any]:
    """Compiles a program and returns what the JSON file holds of it, for one step.

    With ``text`` the compiler's own text of the program is written there.
    """
    wanted = find_slice(row.on)
    jax.config.update("jax_default_matmul_precision", MATMUL[row.precision])
    begun = time.monotonic()
    lowered = lower(row, wanted)
    traced = time.monotonic()
    compiled = compile_for(wanted, lowered)
    done = time.monotonic()
    if text is not None:
        text.write_text(compiled.as_text())
    program = read_program(compiled.as_text())
    costs = estimate(program, wanted.accelerator)
    memory = compiled.memory_analysis()
    return dataclasses.asdict(row) | {
        "commit": commit(),
        "versions": versions(),
        "trace_seconds": traced - begun,
        "compile_seconds": done - traced,
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "new": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "padding": max(
            (x.padded_bytes / x.bytes for x in program.arrays if x.bytes > 2**20),
            default=1.0,
        ),
        **_of_costs(costs, wanted, row),
    }


def _of_costs(costs: Costs, wanted: Slice, row: Row) -> dict[str, Any]:
    steps, accelerator = STEPS if row.program == "step" else 1, wanted.accelerator
    rate, bandwidth = accelerator.rates[row.precision], accelerator.bandwidth
    return {
        "kernels": costs.count / steps,
        "seconds": costs.seconds / steps,
        "cycles": costs.cycles / steps,
        "flops": costs.flops / steps,
        "bytes": costs.bytes / steps,
        "of_rate": costs.flops / costs.seconds / rate,
        "of_bandwidth": costs.bytes / costs.seconds / bandwidth,
        "parts": {
            name: [seconds / steps, count / steps]
            for name, (seconds, count) in costs.parts().items()
        },
        "collectives": [
            [each.kind, each.bytes, each.times / steps] for each in costs.collectives
        ],
    }


def lower(row: Row, wanted: Slice) -> Any:
    """Lowers a row's program."""
    dtype = "bfloat16" if row.precision == "bfloat16" else "float32"
    config = step_config(row.config, dtype)
    layout = Layout(
        make_mesh(devices_of(wanted), row.data_devices),
        runs=row.runs,
        group=row.runs,
        shard_params=row.shard_params,
    )
    runs = abstract_runs(config, layout)
    size = {"shape": (row.batch, LENGTH), "slots": row.batch, "examples": EXAMPLES}
    if row.program == "step":
        return lower_train_steps(config, layout, runs, steps=STEPS, **size)
    if row.program == "evaluation":
        return lower_evaluation(config, layout, runs, **size)
    return _lower_alone(row.program, layout, runs.params)


def _lower_alone(program: str, layout: Layout, params: Any) -> Any:
    """Lowers a part of the optimizer for the parameters of one run."""
    parts = []
    if "clip" in program:
        parts.append(cwgnc_jax.component_clip_by_global_norm(0.05, keep_report=True))
    if "adam" in program:
        parts.append(cwgnc_jax.scale_by_adam())
    tx = optax.chain(*parts)

    def placed(leaf: Any) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout.whole())

    one = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], jnp.float32), params
    )
    grads, state = jax.tree.map(placed, (one, jax.eval_shape(tx.init, one)))
    return jax.jit(tx.update, donate_argnums=(0, 1)).lower(grads, state)


def versions() -> dict[str, str]:
    """The packages that decide on a program."""
    found = {}
    for name in ("jax", "jaxlib", "libtpu", "jax-cuda13-plugin"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def compile_apart(row: Row, texts: Path | None) -> dict[str, Any]:
    """Measures a row in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.compiled", "--row", row.key]
    if texts:
        texts.mkdir(parents=True, exist_ok=True)
        name = "-".join(str(value) for value in dataclasses.astuple(row))
        command += ["--text", str(texts / f"{name.replace(':', '_')}.txt")]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def in_order(found: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows as the page has them: of one device, then of several."""
    known = [row.key for row in all_rows(list(ACCELERATORS), list(MODELS))]
    others = [key for key in found if key not in known]
    return [found[key] for key in (*known, *others) if key in found]


def main() -> None:
    """Compiles what is asked for, prints the page, and writes both if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--on", nargs="+", default=list(ACCELERATORS))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument(
        "--quick", action="store_true", help="two layers of BERT-base only"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--text", type=Path, help="a folder for the programs' texts")
    parser.add_argument(
        "--earlier", type=Path, help="lines that --row printed in another checkout"
    )
    parser.add_argument("--row", help="one program as JSON, whose figures are printed")
    args = parser.parse_args()
    if args.row:
        without_devices()
        print(json.dumps(measure(Row(**json.loads(args.row)), args.text)))
        return
    rows = all_rows(args.on, args.models)
    if args.quick:
        rows = [Row(on, layers=2) for on in args.on]
    found, earlier = {}, []
    if args.json and args.json.exists():
        kept = json.loads(args.json.read_text())
        found = {Row.of(row).key: row for row in kept["rows"]}
        earlier = kept.get("earlier", [])
    if args.earlier:
        earlier = [json.loads(line) for line in args.earlier.read_text().splitlines()]
    result = {
        "benchmark": "compiled",
        "machine": machine(),
        "rows": in_order(found),
        "earlier": earlier,
    }
    now = commit()
    # A compiler keeps little more than one core busy.
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        compiling = {
            pool.submit(compile_apart, row, args.text): row.key
            for row in rows
            if row.key not in found or found[row.key]["commit"] != now
        }
        for done in concurrent.futures.as_completed(compiling):
            found[compiling[done]] = done.result()
            result["rows"] = in_order(found)
            if args.json:
                args.json.parent.mkdir(parents=True, exist_ok=True)
                args.json.write_text(json.dumps(result, indent=1) + "\n")
    publish(result, page(result), args.json)


if __name__ == "__main__":
    main()
