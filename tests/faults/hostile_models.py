"""Models that nobody should be able to fine-tune: weights, configs and tokenizers."""

import functools
import itertools
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from tests.faults.hostile_data import Hostile

WEIGHTS, INDEX = "model/model.safetensors", "model/model.safetensors.index.json"
CONFIG = "model/config.json"
CANARY = b"@CANARY@"
"""Stands for a path that only code out of an input would write to."""


class Models:
    """Makes hostile models out of a good one.

    Args:
      folder: The good one.
    """

    def __init__(self, folder: Path):
        self._weights = (folder / "model.safetensors").read_bytes()
        self._tensors = safetensors.numpy.load(self._weights)
        self._config = json.loads((folder / "config.json").read_text())
        size = int.from_bytes(self._weights[:8], "little")
        self._header = json.loads(self._weights[8 : 8 + size])
        self._data = self._weights[8 + size :]

    def all(self) -> Iterator[Hostile]:
        """All of them."""
        for family in (
            *(self.header_lengths, self.headers, self.tensors, self.shards),
            *(self.configs, self.damaged_json, self.pickles, self.tokenizers),
        ):
            yield from family()

    def header_lengths(self) -> Iterator[Hostile]:
        true, whole = int.from_bytes(self._weights[:8], "little"), len(self._weights)
        sizes = {0, 1, 2, 7, 8, true - 1, true + 1, true // 2, 2 * true, whole - 8}
        sizes |= {whole - 7, whole, whole + 1, 10**8, 10**8 + 1, 2**31, 2**32 - 1}
        for size in sizes | {2**62, 2**63 - 1, 2**63, 2**64 - 8, 2**64 - 1}:
            lying = struct.pack("<Q", size) + self._weights[8:]
            yield Hostile("header lengths", {WEIGHTS: lying})
        for end in np.linspace(0, whole - 1, 20).astype(int):
            yield Hostile("header lengths", {WEIGHTS: self._weights[:end]})
        yield Hostile("header lengths", {WEIGHTS: self._weights + b"\0"})

    def headers(self) -> Iterator[Hostile]:
        """Headers whose JSON is none, or says what cannot be."""
        text = json.dumps(self._header).encode()
        for header in (
            *(b"", b"[]", b"7", b"null", b"{", text[:-1], text + b"}", b"\xff" + text),
            *(b"[" * 10**5, b'{"a":' * 10**5, text.replace(b":", b"=", 1), b"\0" * 64),
            *(text.replace(b"F32", b"F33"), text.replace(b'"shape"', b'"form"')),
            *(text.replace(b"data_offsets", b"offsets"), text.replace(b"F32", b"f32")),
        ):
            yield Hostile("headers", {WEIGHTS: _file(header, self._data)})
        names = [name for name in self._header if name != "__metadata__"]
        for name in (names[0], "classifier.weight", "bert.pooler.dense.bias"):
            entry = self._header[name]
            shape, (begin, end) = entry["shape"], entry["data_offsets"]
            changes: list[dict[str, Any]] = [
                *({"data_offsets": o} for o in ([end, begin], [begin, end + 4])),
                *({"data_offsets": o} for o in ([begin + 4, end], [begin, end - 4])),
                *({"data_offsets": o} for o in ([-4, end], [begin, 2**62], [0, 2**64])),
                *({"data_offsets": o} for o in ([], [begin], [1.5, end], "0", None)),
                *(
                    {"data_offsets": o}
                    for o in ([0, 4], [begin, begin], [2**63, 2**63])
                ),
                *({"shape": s} for s in ([2**62], [2**62, 4], [2**32, 2**32], [-1])),
                *({"shape": s} for s in ([2**64], [1.5], ["2"], None, "2", [0], [])),
                *(
                    {"shape": s}
                    for s in ([0, 2**62], [2**62, 0], [-2, -8], [*shape, 2])
                ),
                *(
                    {"dtype": d}
                    for d in ("F64", "I32", "BF16", "F16", "F8_E4M3", "BOOL")
                ),
                *({"dtype": d} for d in ("C64", "object", "|O", None, 7, [])),
            ]
            for change in changes:
                yield self._with_header(self._header | {name: entry | change})
            lacking = {n: entry for n, entry in self._header.items() if n != name}
            yield self._with_header(lacking)
            for overlap in (n for n in names if n != name):
                same = {"data_offsets": self._header[overlap]["data_offsets"]}
                yield self._with_header(self._header | {name: entry | same})
        yield self._with_header(self._header | {"__metadata__": {"format": 7}})
        yield self._with_header(self._header | {"__metadata__": ["pt"]})
        many = {
            f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
            for i in range(10**5)
        }
        yield self._with_header(many | self._header)

    def tensors(self) -> Iterator[Hostile]:
        """Weights of which one is not what it should be."""
        edits: dict[str, Callable[[np.ndarray], np.ndarray | None]] = {
            "missing tensors": lambda x: None,
            "tensors of another shape": lambda x: np.concatenate([x, x]),
            "tensors of another rank": lambda x: x[None],
            "NaN weights": functools.partial(_first, np.nan),
            "infinite weights": functools.partial(_first, np.inf),
            "tensors of another dtype": lambda x: x.astype(np.float64),
            "tensors of integers": lambda x: x.astype(np.int8),
        }
        for (family, edit), name in itertools.product(edits.items(), self._tensors):
            changed = edit(self._tensors[name])
            others = {n: x for n, x in self._tensors.items() if n != name}
            edited = others if changed is None else others | {name: changed}
            yield Hostile(family, {WEIGHTS: safetensors.numpy.save(edited)})
            if changed is None:
                for other in (f"{name}2", name.upper(), f"../{name}", f"{name}\n"):
                    renamed = others | {other: self._tensors[name]}
                    files = {WEIGHTS: safetensors.numpy.save(renamed)}
                    yield Hostile("renamed tensors", files)

    @functools.cached_property
    def _parts(self) -> dict[str, dict[str, np.ndarray]]:
        """The tensors, by the shard that each is in."""
        return {
            f"model-0000{i + 1}-of-00002.safetensors": dict(
                list(self._tensors.items())[i::2]
            )
            for i in range(2)
        }

    @functools.cached_property
    def sharded(self) -> dict[str, bytes | None]:
        """The same model in two shards."""
        where = {name: file for file, part in self._parts.items() for name in part}
        index = json.dumps({"weight_map": where}).encode()
        shards = {
            f"model/{file}": safetensors.numpy.save(part)
            for file, part in self._parts.items()
        }
        return {WEIGHTS: None, INDEX: index} | shards

    def controls(self) -> Iterator[Hostile]:
        """The good model, as it is taken apart and put together here."""
        yield Hostile("controls", self.sharded, bad=False)
        same = self._with_header(self._header)._replace(family="controls", bad=False)
        yield same._replace(
            files={CONFIG: json.dumps(self._config).encode()} | same.files
        )

    def shards(self) -> Iterator[Hostile]:
        (one, first), (two, second) = self._parts.items()
        where = dict.fromkeys(first, one) | dict.fromkeys(second, two)
        name, other = next(iter(first)), next(iter(second))

        def sharded(family, index, **more):
            text = index if isinstance(index, bytes) else json.dumps(index).encode()
            return Hostile(family, self.sharded | {INDEX: text} | more)

        shards = self.sharded
        # Outside lies a whole model, which would do.
        outside = {"outside.safetensors": self._weights}
        outside |= {f"elsewhere/{file}": shards[f"model/{file}"] for file in (one, two)}
        for path in (
            *("../outside.safetensors", "/outside.safetensors", "..", ".", ""),
            *("./" + one, "../model/" + one, "x/../" + one, "..\\outside.safetensors"),
            *(
                "C:\\outside.safetensors",
                "\\\\host\\outside.safetensors",
                "~/x.safetensors",
            ),
            *(
                "file:///outside.safetensors",
                "https://host/x.safetensors",
                "a\0.safetensors",
            ),
            *(
                "../outside.safetensors\n",
                "．．/outside.safetensors",
                "..∕outside.safetensors",
            ),
            *(
                "%2e%2e%2foutside.safetensors",
                "pytorch_model.bin",
                "config.json",
                one + "/",
            ),
            *("\x1b[2J.safetensors", "$(touch x).safetensors", "a" * 10**5),
        ):
            yield sharded(
                "path escapes", {"weight_map": where | {name: path}}, **outside
            )
            everywhere = dict.fromkeys(where, path)
            yield sharded("path escapes", {"weight_map": everywhere}, **outside)
        for file in (one, two):
            gone = {f"model/{file}": None}
            yield sharded("shards", {"weight_map": where}, **gone)
            yield sharded("shards", {"weight_map": dict.fromkeys(where, file)})
            whole = shards[f"model/{file}"]
            assert whole is not None
            cut = {f"model/{file}": whole[:-1]}
            yield sharded("shards", {"weight_map": where}, **cut)
            empty = {f"model/{file}": b""}
            yield sharded("shards", {"weight_map": where}, **empty)
        overlapping = safetensors.numpy.save(second | {name: self._tensors[name]})
        yield sharded("shards", {"weight_map": where}, **{f"model/{two}": overlapping})
        for lie in (
            {name: two},
            {other: one},
            {"extra.weight": one},
            {name: two, other: one},
        ):
            yield sharded("shards", {"weight_map": where | lie})
        for value in (7, None, [], [one], {}, {"file": one}, True, 1.5):
            yield sharded("shards", {"weight_map": where | {name: value}})
            yield sharded("shards", {"weight_map": value})
        for content in (b"", b"{", b"[]", b"null", b"\xff{}", b"[" * 10**6, b"{}"):
            yield sharded("shards", content)
        twice = json.dumps({"weight_map": where}).replace("{", '{"a": 1, "a": 2, ', 1)
        yield sharded("shards", twice.encode())

    def configs(self) -> Iterator[Hostile]:
        """Configs that say what no model is."""
        integers = (
            *(
                0,
                -1,
                -(2**62),
                2**62,
                2**64,
                10**30,
                2**31,
                1.5,
                "12",
                None,
                True,
                [],
                {},
            ),
            *(float("nan"), float("inf"), [12], "0x10"),
        )
        sizes = (
            *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
            *("intermediate_size", "max_position_embeddings", "type_vocab_size"),
        )
        for name, value in itertools.product(sizes, integers):
            yield self._with_config({name: value})
        for name, value in itertools.product(
            (
                "hidden_dropout_prob",
                "attention_probs_dropout_prob",
                "classifier_dropout",
            ),
            (-0.1, 1.0, 2, float("nan"), float("inf"), "0.1", [], {}, True),
        ):
            yield self._with_config({name: value})
        for name, value in itertools.product(
            ("layer_norm_eps", "initializer_range"),
            (-1, float("nan"), float("inf"), "x", None, [], {}, True),
        ):
            yield self._with_config({name: value})
        for value in ("roberta", "BERT", "", None, 7, [], {}, ["bert"], True):
            yield self._with_config({"model_type": value})
        for name, value in (
            *(("hidden_act", v) for v in ("relu", "gelu_new", None, [], {})),
            *(("position_embedding_type", v) for v in ("relative_key", None, [])),
            *(("is_decoder", v) for v in (True, "yes", None)),
            *(("add_cross_attention", v) for v in (True, [1])),
        ):
            yield self._with_config({name: value})
        for name in sizes:
            # Numbers that a model may have, and this one has not.
            true = self._config[name]
            for lie in (true + 1, true - 1, 2 * true, 1000, 2**24):
                if name != "num_attention_heads" or self._config["hidden_size"] % lie:
                    yield self._with_config({name: lie})

    def damaged_json(self) -> Iterator[Hostile]:
        text = json.dumps(self._config).encode()
        for content in (
            *(b"", b"\n", b"{", b"[]", b"7", b"null", b'"bert"', b"{}", b"\xff" + text),
            *(b"\0" + text, text + b"}", text[1:], text.decode().encode("utf-16")),
            *(b"[" * 10**6, b'{"a":' * 10**6, b'{"a":' * 10**5 + b"0" + b"}" * 10**5),
            *(
                b'{"vocab_size": 19, ' + text[1:],
                b'{"x": {"y": 1, "y": 1}, ' + text[1:],
            ),
            *(b'{"vocab_size": ' + b"9" * 10**4 + b"}", b" " * (2**26 + 1)),
        ):
            yield Hostile("damaged configs", {CONFIG: content})
        for end in np.linspace(1, len(text) - 1, 20).astype(int):
            yield Hostile("damaged configs", {CONFIG: text[:end]})
        yield Hostile("damaged configs", {CONFIG: None})

    def pickles(self) -> Iterator[Hostile]:
        """What runs code if it is unpickled, in all places."""
        for module in (b"posix", b"os", b"subprocess"):
            call = b"getoutput" if module == b"subprocess" else b"system"
            payload = b"c%b\n%b\n(S'touch %b'\ntR." % (module, call, CANARY)
            for name in (
                *("pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt"),
                *("model.pkl", "model.ckpt", "tf_model.h5", "flax_model.msgpack"),
            ):
                yield Hostile("pickles", {WEIGHTS: None, f"model/{name}": payload})
            for name in (WEIGHTS, CONFIG, "train.csv", "dev.csv"):
                yield Hostile("pickles", {name: payload})
            zipped = b"PK\x03\x04" + payload
            yield Hostile("pickles", {WEIGHTS: zipped})

    def tokenizers(self) -> Iterator[Hostile]:
        code = b"open('%b', 'w')\nclass Tokenizer:\n  pass\n" % CANARY
        remote = {
            "tokenizer_class": "Tokenizer",
            "auto_map": {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]},
        }
        settings = json.dumps(remote).encode()
        files = {"model/tokenizer_config.json": settings, "model/evil.py": code}
        yield Hostile("tokenizers", files)
        for content in (b"", b"{", b"{}", b"[]", b"null", b"\xff", b"[" * 10**5):
            yield Hostile("tokenizers", {"model/tokenizer.json": content})
        for content in (b"{", b"[]", b"7", b"\xff", b"[" * 10**5):
            yield Hostile("tokenizers", {"model/tokenizer_config.json": content})
        words = (f"the{i}" for i in range(30))
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
        vocabulary = "\n".join([*special, "the", "dog", "sleeps"]).encode()
        for content in (None, b"\xff\xfe", b"\0\xff", vocabulary):
            yield Hostile("tokenizers", {"model/vocab.txt": content})

    def _with_header(self, header: Any) -> Hostile:
        file = _file(json.dumps(header).encode(), self._data)
        return Hostile("headers", {WEIGHTS: file})

    def _with_config(self, change: dict[str, Any]) -> Hostile:
        text = json.dumps(self._config | change).encode()
        return Hostile("configs", {CONFIG: text})


def _file(header: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def _first(value: float, tensor: np.ndarray) -> np.ndarray:
    changed = tensor.copy()
    changed.flat[0] = value
    return changed
