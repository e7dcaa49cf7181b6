"""Data files that nobody should be able to train on."""

import io
import itertools
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow
from pyarrow import parquet

from cwgnc_train.data import GLUE

TEXTS = ("text", "label")
ROWS = [("the dog sleeps", "good"), ("the cat sees", "bad"), ("a dog sees", "good")]


class Hostile(NamedTuple):
    """A change to good input.

    Attributes:
      family: What kind of input it is.
      files: Their new contents by name; None for one that is gone.
      settings: The task and fields of ``DataConfig`` that differ, files by their names.
      bad: Whether it must be refused; a random change may be harmless.
    """

    family: str
    files: dict[str, bytes | None]
    settings: dict[str, Any] = {}
    bad: bool = True


def table(suffix: str, rows, names=TEXTS) -> bytes:
    """Rows as a file of this kind."""
    if suffix == "parquet":
        columns = zip(*rows, strict=True) if rows else [[] for _ in names]
        arrays = {n: list(c) for n, c in zip(names, columns, strict=True)}
        return parquet_of(pyarrow.table(arrays))
    if suffix in ("csv", "tsv"):
        separator = "\t" if suffix == "tsv" else ","
        lines = [separator.join(map(str, row)) for row in (names, *rows)]
    else:
        objects = [dict(zip(names, row, strict=True)) for row in rows]
        if suffix == "json":
            return json.dumps(objects, ensure_ascii=False).encode()
        lines = [json.dumps(row, ensure_ascii=False) for row in objects]
    return "".join(f"{line}\n" for line in lines).encode()


def parquet_of(content: pyarrow.Table) -> bytes:
    file = io.BytesIO()
    parquet.write_table(content, file)
    return file.getvalue()


def own(family, suffix, train=None, dev=None, bad=True, **settings) -> Hostile:
    """Own files, of which one or both are changed."""
    names = {"train_file": f"train.{suffix}", "validation_file": f"dev.{suffix}"}
    good = table(suffix, ROWS)
    contents = [good if content is None else content for content in (train, dev)]
    files = dict(zip(names.values(), contents, strict=True))
    return Hostile(family, files, names | settings, bad)


TEXT_KINDS = ("csv", "tsv", "jsonl", "json")
WORDS = {
    "latin-1": "Grüße",
    "cp1252": "l’été",
    "cp437": "café",
    "mac-roman": "café",
    "koi8-r": "кот и пёс",
    "cp1251": "кот и пёс",
    "iso8859-7": "γάτα",
    "cp1255": "חתול",
    "cp1256": "قطة",
    "shift_jis": "猫と犬",
    "euc-jp": "猫と犬",
    "gb18030": "猫和狗",
    "big5": "貓和狗",
    "euc-kr": "고양이",
    "cp037": "cat",
    **{f"utf-{bits}{end}": "cat" for bits in (16, 32) for end in ("", "-le", "-be")},
}
NO_UTF8 = (
    *(b"\xff", b"\xfe\xff", b"\x80", b"\xc3", b"\xe2\x82", b"\xc0\xaf"),
    *(b"\xe0\x80\xaf", b"\xf0\x80\x80\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"),
    b"\xf8\x88\x80\x80\x80",
)


def encodings() -> Iterator[Hostile]:
    for (codec, word), suffix in itertools.product(WORDS.items(), TEXT_KINDS):
        text = table(suffix, [*ROWS, (word, "good")]).decode()
        yield own("encodings", suffix, text.encode(codec))
    for sequence, suffix in itertools.product(NO_UTF8, TEXT_KINDS):
        for word in (b"dog", b"label"):
            content = table(suffix, ROWS).replace(word, word + sequence, 1)
            yield own("encodings", suffix, content)


def nuls() -> Iterator[Hostile]:
    for suffix in TEXT_KINDS:
        good = table(suffix, ROWS)
        for place in {good.index(w) for w in (b"text", b"dog", b"bad")} | {len(good)}:
            content = good[:place] + b"\0" + good[place:]
            yield own("NULs", suffix, content)
            yield own("NULs", suffix, dev=content)


def quotes() -> Iterator[Hostile]:
    for suffix, broken in itertools.product(
        ("csv", "tsv"), ('"a', '"a"b', '"a" "b"', '""a', '"a""', '"')
    ):
        for row in range(3):
            rows = [list(r) for r in ROWS]
            rows[row][0] = broken
            yield own("quotes", suffix, table(suffix, rows))
        yield own("quotes", suffix, table(suffix, ROWS, (broken, "label")))


def columns() -> Iterator[Hostile]:
    for suffix in (*TEXT_KINDS, "parquet"):
        for names in (
            *(("Text", "label"), ("text", "Label"), ("texts", "label"), ("", "label")),
            *(
                ("text ", "label"),
                ("label", "text "),
                ("a", "b"),
                ("text", "a" * 10**6),
            ),
        ):
            yield own("columns", suffix, table(suffix, ROWS, names))
            yield own("columns", suffix, dev=table(suffix, ROWS, names))
        yield own("columns", suffix, text_columns=("text", "other"))
        yield own("columns", suffix, label_column="other")
        yield own("columns", suffix, table(suffix, [("a",), ("b",)], ("text",)))
    for suffix in ("csv", "tsv"):
        yield own("columns", suffix, table(suffix, ROWS, ("text", "text")))
        yield own("columns", suffix, table(suffix, ROWS, ("label", "label")))
        for row, change in itertools.product(range(4), ((), ("a", "b", "c"), ("a",))):
            rows = [TEXTS, *ROWS]
            rows[row] = change
            if change or row == 0:
                yield own("columns", suffix, table(suffix, rows[1:], rows[0]))
    names = [b"c%d" % i for i in range(10**6)]
    header = b",".join(names) + b"\n"
    yield own("a million columns", "csv", 2 * header)
    yield own("a million columns", "csv", header + b"a,b\n")
    same = b"text\t" * 10**6 + b"label\n"
    yield own("a million columns", "tsv", 2 * same)
    for all_names in (names, [*names[1:], names[-1]]):
        content = b'{"' + b'":0,"'.join(all_names) + b'":0}\n'
        yield own("a million columns", "jsonl", content)


CONTROLS = ("\x01", "\x07", "\x1b[2J", "\x7f", "\x85", "\u2028", "\u2029")


def labels() -> Iterator[Hostile]:
    for suffix in TEXT_KINDS:
        for label in ("", " ", "a" * 1001, "9" * 5000, *(f"a{c}b" for c in CONTROLS)):
            yield own("labels", suffix, table(suffix, [*ROWS, ("a dog", label)]))
        for label in ("GOOD", "goods", "0", "1", "-1", "2", "good.", "nan", "", "bad,"):
            rows = [("a dog", label.replace(",", ";"))]
            yield own("labels out of range", suffix, dev=table(suffix, rows))
        yield own("labels", suffix, table(suffix, [(t, "one") for t, _ in ROWS]))
        many = [(f"the dog {i}", f"label {i}") for i in range(2000)]
        yield own("labels", suffix, table(suffix, many))
        for label in (
            *("high", "nan", "inf", "-inf", "1e39", "-1e999", "", "true", "0x10"),
            *("1;5", "--1", "1e", "1 2", "½", "1__0"),
        ):
            rows = [("a dog", "1.5"), ("a cat", label)]
            yield own("labels", suffix, table(suffix, rows), regression=True)
    for suffix in ("jsonl", "json"):
        for label in (None, [], ["good"], {}, {"a": 1}, float("nan")):
            yield own("labels", suffix, table(suffix, [*ROWS, ("a dog", label)]))
            rows = [("a dog", 1.5), ("a cat", label)]
            yield own("labels", suffix, table(suffix, rows), regression=True)
        for text in (None, 7, 1.5, True, [], ["the dog"], {}):
            yield own("texts", suffix, table(suffix, [*ROWS, (text, "good")]))


def empty_sets() -> Iterator[Hostile]:
    for suffix in (*TEXT_KINDS, "parquet"):
        contents = [b"", b"\n", b" \n\t\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n"]
        contents.append(table(suffix, []))
        if suffix in ("csv", "tsv"):
            contents.append(table(suffix, []).rstrip())
        for content in contents:
            yield own("empty sets", suffix, content)
            yield own("empty sets", suffix, dev=content)
        yield Hostile("empty sets", {}, {"train_file": f"no.{suffix}"})
    yield own("empty sets", "csv", table("csv", ROWS[:2]), holdout=0.1)


def json_files() -> Iterator[Hostile]:
    for suffix, field in itertools.product(("jsonl", "json"), (*TEXTS, "more")):
        row = {"text": "a dog", "label": "good"}

        def content(value, field=field, row=row, suffix=suffix):
            line = json.dumps(row | {field: "@"}).replace('"@"', value)
            return f"[{line}]\n" if suffix == "json" else f"{line}\n"

        for value in (
            *("[" * depth + "]" * depth for depth in (10**5, 10**6)),
            '{"a":' * 10**5 + "0" + "}" * 10**5,
            *("9" * 5000, '{"a": 1, "a": 2}', '"\\ud800"', '"\\udfff\\ud800"', "'a'"),
            *("nul", '"a', '"a\\x"', '"\\u12"', "01", "1.", "-", "[1,]", "{}}", "@"),
        ):
            yield own("JSON", suffix, content(value).encode())
    good = table("jsonl", ROWS)
    for end in range(1, len(good.splitlines()[0])):
        yield own("JSON", "jsonl", good[:end])
    for line in ("[]", "7", '"text"', "null", "true", '["a", "good"]', "{} {}", ","):
        yield own("JSON", "jsonl", good + line.encode())


def long_lines() -> Iterator[Hostile]:
    for suffix in TEXT_KINDS:
        for text in ("dog " * 300_000, "d" * 10**7):
            yield own("long lines", suffix, table(suffix, [*ROWS, (text, "good")]))
    for content in (b'"' * (10**7 + 1), b"," * 10**6 + b"\na,b\n", b"\n" * 10**7):
        yield own("long lines", "csv", content)


def parquet_files() -> Iterator[Hostile]:
    good = table("parquet", ROWS)
    for end in np.linspace(1, len(good) - 1, 30).astype(int):
        yield own("parquet", "parquet", good[:end])
    for size in (0, 1, len(good) - 8, len(good), 2**31 - 1, 2**32 - 1):
        lying = good[:-8] + size.to_bytes(4, "little") + good[-4:]
        yield own("parquet", "parquet", lying)
    for column in (
        *([None, "a", "b"], [1, 2, 3], [[1], [2], [3]], [True, False, True]),
        [{"a": 1}, {"a": 2}, {"a": 3}],
    ):
        arrays = {"text": column, "label": ["good", "bad", "good"]}
        yield own("parquet", "parquet", parquet_of(pyarrow.table(arrays)))
    offsets = pyarrow.py_buffer(np.array([0, 1, 2, 4], np.int32))
    no_utf8 = pyarrow.StringArray.from_buffers(
        3, offsets, pyarrow.py_buffer(b"a\xff\xc3(")
    )
    arrays = {"text": no_utf8, "label": ["good", "bad", "good"]}
    yield own("parquet", "parquet", parquet_of(pyarrow.table(arrays)))
    # A few hundred bytes that become millions of rows.
    zeros = np.zeros(4_000_000, np.int8)
    bomb = pyarrow.DictionaryArray.from_arrays(zeros, ["a dog"])
    arrays = {"text": bomb, "label": bomb}
    yield own("parquet", "parquet", parquet_of(pyarrow.table(arrays)))


def official_files() -> Iterator[Hostile]:
    for task in GLUE.values():
        form = task.files
        texts = form.text_columns or task.text_columns
        names = form.column_names or [*texts, form.label_column]
        header = [] if form.column_names else [names]
        values = task.label_names or ("1.5", "3")
        if task.label_names and not form.named_classes:
            values = tuple(map(str, range(task.num_labels)))

        def content(labels, names=names, header=header, label=form.label_column):
            rows = [[x if n == label else "a dog" for n in names] for x in labels]
            return "".join("\t".join(row) + "\n" for row in header + rows).encode()

        broken = [b"", b"\n", b"\xff\n", b"a\0b\n", b"one column\n", content([])]
        broken += [content([*values, label]) for label in ("x", "", "nan", "1e99")]
        if task.label_names:
            broken += [content([*values, label]) for label in ("7", "-1", "1.0")]
        dev = ["dev_matched", "dev_mismatched"] if task.name == "mnli" else ["dev"]
        settings = {"task": task.name, "data_dir": "glue"}
        paths = [f"glue/{task.name}/{name}.tsv" for name in ("train", *dev)]
        good = dict.fromkeys(paths, content(values))
        for path in paths:
            for damage in (*broken, None):
                yield Hostile("GLUE files", good | {path: damage}, settings)


def data_files() -> Iterator[Hostile]:
    """All of them."""
    for family in (
        *(encodings, nuls, quotes, columns, labels, empty_sets, json_files),
        *(long_lines, parquet_files, official_files),
    ):
        yield from family()
