"""What XLA makes of our programs for accelerators that are not here: estimates.

    python -m benchmarks.compiled [--on h100 v5e ...] [--models base large ...]
        [--quick] [--text FOLDER] [--json FILE]

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
from benchmarks.measure import commit, publish
from benchmarks.training import LENGTH, NAMES, SIZES, step_config
from cwgnc_jax import models
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

MODELS = SIZES | {"modernbert": models.ModernBertConfig()}
TITLES = NAMES | {"modernbert": "ModernBERT-base"}
EXAMPLES = 2490  # RTE's.
STEPS = 10
"""Those of one program, as training takes them on an accelerator."""
MATMUL = {"float32": "highest", "tf32": "default", "bfloat16": "default"}


@dataclasses.dataclass(frozen=True)
class Row:
    """One program for one kind of accelerator."""

    on: str
    model: str = "base"
    precision: str = "bfloat16"
    program: str = "step"
    """step, evaluation, clip, adam, or clip and adam."""
    runs: int = 1
    batch: int = 16
    data_devices: int = 1
    shard_params: bool = False
    layers: int | None = None
    """Fewer than the model has, to be compiled sooner."""

    @property
    def config(self) -> models.EncoderConfig:
        """The model's config."""
        config = MODELS[self.model]
        if self.layers is None:
            return config
        return dataclasses.replace(config, num_hidden_layers=self.layers)

    @property
    def key(self) -> str:
        """What tells rows apart."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)


def all_rows(accelerators: list[str], names: list[str]) -> list[Row]:
    """The programs of the page."""
    rows = []
    for on in accelerators:
        rows += [Row(on, name) for name in names]
        rows += [Row(on, "base", program=each) for each in ("evaluation", *_ALONE)]
    for on in ("h100", "v5e"):
        rows += [
            *(Row(on, "base", precision) for precision in ("tf32", "float32")),
            Row(on, "large", batch=64),
            *(Row(on, "minilm", runs=runs) for runs in (4, 8)),
        ]
    for on in ("h100:8", "v5e:2x4"):
        rows += [
            Row(on, "base", batch=64, data_devices=8),
            Row(on, "base", batch=64, data_devices=8, shard_params=True),
            Row(on, "minilm", runs=8),
            Row(on, "minilm", runs=8, data_devices=2),
        ]
    return [row for row in rows if row.on in accelerators or ":" in row.on]


_ALONE = ("clip", "adam", "clip and adam")


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


def page(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    rows = result["rows"]
    lines = [
        "# What compilers make of our programs for accelerators",
        "",
        "Estimates, all of them; nothing here was measured on an accelerator. Each "
        "program was compiled by the accelerator's own compiler on a machine that has "
        "none. A GPU's kernel is priced by the longest of three: its bytes at 90 % of "
        "the published bandwidth, its products at 70 % of the published rate, and 2 µs "
        "for a launch; products are not autotuned, so their tiles mean nothing. A "
        "TPU's kernel is priced by the cycles that its compiler estimates, at the "
        "clock that the published rate implies. A step is a tenth of a program of "
        f"{STEPS}. Batches are rows of {LENGTH} tokens; dropout is on, the clip keeps "
        "its report. Padding: what the "
        "array over 1 MiB that is padded most takes, of its own size.",
    ]
    for on in dict.fromkeys(row["on"] for row in rows):
        lines += [
            "",
            f"## {find_slice(on).accelerator.title}, {on}",
            "",
            "| program, estimated | kernels | ms | of the rate | memory, GB | "
            "padding | parts | exchanged |",
            "|---|---:|---:|---:|---:|---:|---|---|",
            *(_line(row) for row in rows if row["on"] == on),
        ]
    lines += ["", "Compiled with:", ""]
    lines += sorted(
        {
            f"- {', '.join(f'{k} {v}' for k, v in row['versions'].items())}; "
            f"commit {row['commit']}"
            for row in rows
        }
    )
    return "\n".join(lines) + "\n"


def _line(row: dict[str, Any]) -> str:
    layers = f" of {row['layers']} layers" if row["layers"] else ""
    what = f"{TITLES[row['model']]}{layers}, {row['precision']}, "
    if row["program"] in ("step", "evaluation"):
        runs = f"{row['runs']} runs × " if row["runs"] > 1 else ""
        what += f"{row['program']} of {runs}{row['batch']} × {LENGTH}"
    else:
        what += f"{row['program']} alone"
    if row["data_devices"] > 1:
        split = ", split parameters" if row["shard_params"] else ""
        what += f" over {row['data_devices']} devices{split}"
    total = row["seconds"]
    parts = ", ".join(
        f"{name} {100 * seconds / total:.0f} %"
        for name, (seconds, _) in row["parts"].items()
        if seconds > 0.015 * total
    )
    memory = (row["arguments"] + row["temporaries"] + row["new"]) / 1e9
    kinds: dict[str, list[float]] = {}
    for kind, size, times in row["collectives"]:
        count, moved = kinds.get(kind, [0, 0])
        kinds[kind] = [count + times, moved + times * size]
    exchanged = ", ".join(
        f"{count:.0f} {kind} of {moved / 1e6:.1f} MB"
        for kind, (count, moved) in kinds.items()
    )
    of_rate = f"{100 * row['of_rate']:.0f} %" if row["flops"] else "–"
    return (
        f"| {what} | {row['kernels']:,.0f} | {1e3 * total:.2f} | {of_rate} | "
        f"{memory:.2f} | {row['padding']:.2f} | {parts} | {exchanged or '–'} |"
    )


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
    parser.add_argument("--row", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        without_devices()
        print(json.dumps(measure(Row(**json.loads(args.row)), args.text)))
        return
    rows = all_rows(args.on, args.models)
    if args.quick:
        rows = [Row(on, layers=2) for on in args.on]
    found = {}
    if args.json and args.json.exists():
        for row in json.loads(args.json.read_text())["rows"]:
            fields = {field.name for field in dataclasses.fields(Row)}
            found[Row(**{k: row[k] for k in fields}).key] = row
    result = {"benchmark": "compiled", "rows": in_order(found)}
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
