"""No code out of a file or off the hub is run, whatever it is called."""

import ast
import json
import types
from pathlib import Path

import pytest

from cwgnc_jax import models
from cwgnc_train.commands import run
from cwgnc_train.config import UserError
from cwgnc_train.data import CachedTokenizer
from cwgnc_train.engine import inputs
from tests.train.conftest import write_tiny_model

ROOT = Path(__file__).parents[3]
SOURCES = [
    path
    for folder in ("cwgnc_jax", "train", "examples")
    for path in sorted((ROOT / folder).rglob("*.py"))
]
UNSAFE = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "torch"}
UNSAFE |= {"eval", "exec", "__import__"}


def test_nothing_is_unpickled_and_no_remote_code_is_trusted():
    assert len(SOURCES) > 60
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Import(names=names):
                    found = {alias.name.partition(".")[0] for alias in names}
                case ast.ImportFrom(module=str(module)):
                    found = {module.partition(".")[0]}
                case ast.keyword(arg="trust_remote_code" | "allow_pickle", value=value):
                    assert isinstance(value, ast.Constant) and value.value is False, (
                        path
                    )
                    continue
                case ast.Name(id=name):
                    found = {name}
                case _:
                    continue
            assert not found & UNSAFE, path


def test_code_beside_a_tokenizer_is_not_run(tmp_path):
    folder = write_tiny_model(tmp_path)
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    own_class = {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]}
    for name in ("tokenizer_config.json", "config.json"):
        config = json.loads((folder / name).read_text())
        changed = config | {"auto_map": own_class, "tokenizer_class": "Tokenizer"}
        (folder / name).write_text(json.dumps(changed))
    with pytest.raises(UserError, match="the tokenizer in .* cannot be read"):
        CachedTokenizer(folder, cache=False).encode((["a"],), 8)
    assert not (tmp_path / "ran").exists()


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub_flags(tmp_path, tiny_model, tiny_data, monkeypatch):
    """Flags of a run whose model is of the hub, and what revisions it was asked for."""
    folder = tmp_path / "models--x--y" / "snapshots" / COMMIT
    folder.parent.mkdir(parents=True)
    folder.symlink_to(tiny_model)
    asked = []

    def load(model, revision, **options):
        asked.append((model, revision))
        return models.load_pretrained(folder, **options)

    stub = types.SimpleNamespace(load_pretrained=load)
    monkeypatch.setattr(
        inputs, "models", types.SimpleNamespace(**vars(models) | vars(stub))
    )
    values = {"model": "x/y", "workdir": tmp_path / "run", "max-length": 16}
    values |= {"text-columns": "text", "preset": "code", "epochs": 1}
    values |= dict(zip(("train-file", "validation-file"), tiny_data, strict=True))
    pairs = [(f"--{name}", str(value)) for name, value in values.items()]
    return ["finetune", *(part for pair in pairs for part in pair), "--resume"], asked


@pytest.mark.slow
def test_the_commit_of_the_hub_is_in_the_settings_and_a_resume_takes_it(
    hub_flags, tmp_path
):
    flags, asked = hub_flags
    assert run(flags) == 0
    path = tmp_path / "run" / "study.json"
    commits = json.loads(path.read_text())["commits"]
    assert commits == {"model": COMMIT, "own": None}
    assert run(flags) == 0
    assert asked == [("x/y", None), ("x/y", COMMIT)]


@pytest.mark.parametrize("commits", [{"model": 7}, {"model": ["x"]}, "x", None, {}])
def test_a_commit_that_is_none_is_not_asked_for(hub_flags, tmp_path, capsys, commits):
    flags, asked = hub_flags
    (tmp_path / "run").mkdir()
    known = {"data": {}, "weights": {}, "commits": commits}
    (tmp_path / "run" / "study.json").write_text(json.dumps(known))
    assert run(flags) == 2
    line = capsys.readouterr().err
    assert ("is damaged" in line) == (commits != {}) and not asked
