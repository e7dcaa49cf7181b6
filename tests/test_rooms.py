import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules(folder, pattern="**/*.py"):
    return sorted((ROOT / folder).glob(pattern))


def test_the_clip_needs_only_jax_numpy_and_optax():
    allowed = set(sys.stdlib_module_names) | {"cwgnc_jax", "jax", "numpy", "optax"}
    for path in modules("cwgnc_jax", "*.py"):
        assert {name.partition(".")[0] for name in imports(path)} <= allowed, path


def test_torch_and_transformers_stay_out_of_the_library():
    for path in modules("cwgnc_jax"):
        assert not {"torch", "transformers"} & set(imports(path)), path


def test_the_application_uses_public_names_and_no_nnx():
    for path in modules("train"):
        for name in imports(path):
            assert not name.startswith(("cwgnc_jax._", "flax", "torch")), (path, name)


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("_tree_paths", {"_components", "_clipping", "_adam", "models"}),
        ("_checks", {"_components", "_thresholds", "_clipping", "models"}),
        ("_rules", {"_components", "_assignment", "_clipping", "models"}),
        ("_components", {"_assignment", "_clipping", "_adam", "_alias", "models"}),
        ("_assignment", {"_norms", "_clipping", "_adam", "_alias", "models"}),
        ("_norms", {"_thresholds", "_report", "_clipping", "_alias", "models"}),
        ("_thresholds", {"_components", "_norms", "_clipping", "_alias", "models"}),
        ("_report", {"_components", "_norms", "_clipping", "_alias", "models"}),
        ("_clipping", {"_adaptive", "_outliers", "_adam", "_alias", "models"}),
        ("_adaptive", {"_outliers", "_adam", "_alias", "models"}),
        ("_outliers", {"_adam", "_alias", "models"}),
        ("_explain", {"_clipping", "_adam", "_alias", "models"}),
        ("_adam", {"_alias", "_clipping", "models"}),
        ("_depth", {"_clipping", "_adam", "_alias", "models", "_unfreezing"}),
        ("_unfreezing", {"_clipping", "_adam", "_alias", "models"}),
        ("_layer_decay", {"_clipping", "_adam", "_alias", "models"}),
        ("_prior_decay", {"_clipping", "_adam", "_alias", "models"}),
        ("_mixout", {"_clipping", "_adam", "_alias", "models", "_components"}),
        ("models/config", {"models.batch", "models.layers", "models.encoders"}),
        ("models/batch", {"models.layers", "models.encoders", "models.forward"}),
        ("models/layers", {"models.bert", "models.encoders", "models.forward"}),
        ("models/encoders", {"models.names", "models.forward", "models.weights"}),
        ("models/names", {"models.forward", "models.parameters", "models.weights"}),
        ("models/forward", {"models.parameters", "models.weights"}),
    ],
)
def test_imports_of_the_library_go_one_way(module, forbidden):
    names = set(imports(ROOT / f"cwgnc_jax/{module}.py"))
    assert not {f"cwgnc_jax.{name}" for name in forbidden} & names


@pytest.mark.parametrize(
    ("module", "later"),
    [
        ("config", "config_checks tasks tables examples batches optimizer steps"),
        ("config_checks", "tasks tables examples batches optimizer steps inputs"),
        ("tasks", "tables examples batches optimizer steps inputs parallel"),
        ("tables", "examples batches optimizer steps inputs parallel"),
        ("caches", "batches token_cache steps inputs parallel loop experiments"),
        ("token_cache", "steps inputs parallel evaluation loop experiments"),
        ("optimizer", "batches steps inputs parallel loop experiments"),
        ("sharing", "steps inputs parallel data_parallel loop experiments"),
        ("steps", "inputs parallel evaluation loop experiments"),
        ("inputs", "parallel evaluation loop experiments"),
        ("parallel", "data_parallel evaluation memory loop experiments"),
        ("data_parallel", "evaluation memory loop experiments"),
        ("hosts", "steps inputs parallel checkpoint restart loop experiments"),
        ("evaluation", "loop experiments"),
        ("writers", "steps inputs parallel checkpoint restart run_recorder loop"),
        ("manifest", "steps inputs parallel checkpoint restart loop experiments"),
        ("records", "steps inputs parallel checkpoint restart loop experiments"),
        ("interruption", "steps inputs parallel checkpoint loop experiments"),
        ("checkpoint", "inputs restart run_recorder loop experiments"),
        ("nonfinite", "steps inputs parallel checkpoint restart run_recorder loop"),
        ("restart", "run_recorder loop experiments"),
        ("run_recorder", "loop experiments"),
        ("memory", "loop experiments"),
        ("loop", "experiments"),
    ],
)
def test_imports_of_the_application_go_one_way(module, later):
    names = set(imports(ROOT / f"train/{module}.py"))
    assert not {f"train.{name}" for name in later.split()} & names


def test_pictures_are_drawn_without_jax():
    for path in modules("train/analysis"):
        assert not {name for name in imports(path) if name.startswith("jax")}, path


@pytest.mark.parametrize(
    "command", [["--help"], ["finetune", "--help"], ["stability", "--help"]]
)
def test_help_needs_no_jax(command):
    code = (
        "import sys\nfrom train.__main__ import main\n"
        "try:\n  main(sys.argv[1:])\nexcept SystemExit:\n  pass\n"
        "assert not {'jax', 'numpy', 'pandas', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code, *command], cwd=ROOT, check=True)
