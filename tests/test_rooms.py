import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def imports(path, for_types=True):
    tree = ast.parse(path.read_text())
    if not for_types:
        tree.body = [node for node in tree.body if not is_for_types(node)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, "a relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_for_types(node):
    """Whether only type checkers read this statement."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def modules(folder, pattern="**/*.py"):
    return sorted((ROOT / folder).glob(pattern))


def test_the_clip_needs_only_jax_numpy_and_optax():
    allowed = set(sys.stdlib_module_names) | {"cwgnc_jax", "jax", "numpy", "optax"}
    for path in modules("cwgnc_jax", "*.py"):
        names = {name.partition(".")[0] for name in imports(path, for_types=False)}
        assert names <= allowed, path


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
        ("_messages", {"_rules", "_components", "_clipping", "models"}),
        ("_checks", {"_components", "_thresholds", "_clipping", "models"}),
        ("_rules", {"_components", "_assignment", "_clipping", "models"}),
        ("_components", {"_assignment", "_clipping", "_adam", "_alias", "models"}),
        ("_assignment", {"_norms", "_clipping", "_adam", "_alias", "models"}),
        ("_norms", {"_thresholds", "_report", "_clipping", "_alias", "models"}),
        ("_thresholds", {"_components", "_norms", "_clipping", "_alias", "models"}),
        ("_report", {"_norms", "_clipping", "_alias", "models"}),
        ("_clipping", {"_learned", "_adaptive", "_outliers", "_alias", "models"}),
        ("_learned", {"_adaptive", "_outliers", "_adam", "_alias", "models"}),
        ("_adaptive", {"_outliers", "_adam", "_alias", "models"}),
        ("_outliers", {"_adaptive", "_adam", "_alias", "models"}),
        ("_spikes", {"_clipping", "_learned", "_adaptive", "_outliers", "_alias"}),
        ("_explain", {"_clipping", "_adam", "_alias", "models"}),
        ("_adam", {"_alias", "_clipping", "models"}),
        ("_depth", {"_clipping", "_adam", "_alias", "models", "_unfreezing"}),
        ("_unfreezing", {"_clipping", "_adam", "_alias", "models"}),
        ("_layer_decay", {"_clipping", "_adam", "_alias", "models"}),
        ("_prior_decay", {"_clipping", "_adam", "_alias", "models"}),
        ("_mixout", {"_clipping", "_adam", "_alias", "models", "_components"}),
        ("models/errors", {"models.config", "models.files", "models.names"}),
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


# From each room of the application to those it may import.
ROOMS = {
    "config": set(),
    "records": {"config"},
    "data": {"config", "records"},
    "engine": {"config", "records", "data"},
    "study": {"config", "records", "data", "engine"},
    "plan": {"config", "data", "engine"},
    "analysis": {"config", "records"},
    "commands": {"config", "engine", "study", "analysis", "plan"},
}
APPLICATION = "train/cwgnc_train"


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_the_faces_of_rooms_below(room):
    for path in modules(f"{APPLICATION}/{room}"):
        for name in imports(path):
            package, _, rest = name.partition(".")
            other, _, inside = rest.partition(".")
            if package != "cwgnc_train" or other == room:
                continue
            assert other in ROOMS[room], (path, name)
            # A name of the face, and no module behind it.
            assert not (ROOT / APPLICATION / other / f"{inside}.py").exists() or (
                inside in names_of_face(other)
            ), (path, name)


@pytest.mark.parametrize("room", ROOMS)
def test_a_face_names_what_it_imports(room):
    if room != "commands":
        path = ROOT / APPLICATION / room / "__init__.py"
        imported = {
            alias.asname or alias.name
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        assert names_of_face(room) == imported


def names_of_face(room):
    tree = ast.parse((ROOT / APPLICATION / room / "__init__.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "__all__":
            return set(ast.literal_eval(node.value))
    # A name that is imported as itself is given on.
    return {
        alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.name == alias.asname
    }


@pytest.mark.parametrize("room", ["config", "records", "analysis"])
def test_these_rooms_do_without_jax(room):
    forbidden = {"jax", "jaxlib", "flax", "optax", "cwgnc_jax"}
    for path in modules(f"{APPLICATION}/{room}"):
        assert not {name.partition(".")[0] for name in imports(path)} & forbidden, path


def test_only_the_engine_trains():
    for path in modules(APPLICATION):
        if path.parent.name != "engine":
            assert "optax" not in set(imports(path)), path


def test_no_module_of_the_application_is_longer_than_400_lines():
    for path in [*modules(APPLICATION), *modules("cwgnc_jax")]:
        assert len(path.read_text().splitlines()) <= 400, path


@pytest.mark.parametrize(
    "command", [["--help"], ["finetune", "--help"], ["stability", "--help"]]
)
def test_help_needs_no_jax(command):
    code = (
        "import sys\nfrom cwgnc_train.commands import run\n"
        "try:\n  run(sys.argv[1:])\nexcept SystemExit:\n  pass\n"
        "assert not {'jax', 'numpy', 'pandas', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code, *command], check=True)
