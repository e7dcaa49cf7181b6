"""The page of ``benchmarks.compiled``: tables of estimates."""

from typing import Any

from benchmarks.compiled_rows import STEPS, TITLES, Row
from benchmarks.training import LENGTH
from cwgnc_train.plan import find_slice


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
    earlier = result.get("earlier", [])
    if earlier:
        lines += _before_and_after(earlier, {Row.of(row).key: row for row in rows})
    lines += ["", "Compiled with:", ""]
    lines += sorted(
        {
            f"- {', '.join(f'{k} {v}' for k, v in row['versions'].items())}; "
            f"commit {row['commit']}"
            for row in (*rows, *earlier)
        }
    )
    return "\n".join(lines) + "\n"


def _before_and_after(
    earlier: list[dict[str, Any]], now: dict[str, dict[str, Any]]
) -> list[str]:
    lines = [
        "",
        "## Before and after",
        "",
        "The same programs of an earlier commit, compiled by the script of this one.",
        "",
        "| program, estimated | commit | ms | kernels | cycles, M | random bits |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for before in earlier:
        for each in (before, now.get(Row.of(before).key)):
            if each is not None:
                bits = each["parts"].get("random bits", [0.0])[0] / each["seconds"]
                cycles = f"{each['cycles'] / 1e6:.1f}" if each["cycles"] else "–"
                lines.append(
                    f"| {each['on']}: {_what(each)} | {each['commit']} | "
                    f"{1e3 * each['seconds']:.2f} | {each['kernels']:,.0f} | "
                    f"{cycles} | {100 * bits:.1f} % |"
                )
    return lines


def _what(row: dict[str, Any]) -> str:
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
    return what


def _line(row: dict[str, Any]) -> str:
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
        if count >= 1  # Others are outside the loop over steps.
    )
    of_rate = f"{100 * row['of_rate']:.0f} %" if row["flops"] else "–"
    return (
        f"| {_what(row)} | {row['kernels']:,.0f} | {1e3 * total:.2f} | {of_rate} | "
        f"{memory:.2f} | {row['padding']:.2f} | {parts} | {exchanged or '–'} |"
    )
