import pytest

from cwgnc_train.commands import run
from tests.train.conftest import write_tiny_model


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    """A tiny model of two layers."""
    return write_tiny_model(tmp_path_factory.mktemp("two_layers"), layers=2)


@pytest.mark.parametrize(
    ("components", "rows"),
    [("by_parameter", 41), ("by_module_type", 14), ("by_layer", 5), ("global", 1)],
)
def test_components_of_a_checkpoint_are_listed(tiny_model, capsys, components, rows):
    arguments = ["components", "--model", str(tiny_model), "--components", components]
    assert run([*arguments, "--num-labels", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["component", "size", "parameter", "shape"]
    assert f"{rows} in all" in lines[-1]
    assert any("classifier/kernel" in line and "(16, 3)" in line for line in lines)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num-labels", "0"], "--num-labels must be at least 1, got 0"),
        (["--model", "/nowhere/at/all"], "no directory /nowhere/at/all"),
    ],
)
def test_bad_input_ends_in_one_line(tiny_model, capsys, flags, message):
    assert run(["components", "--model", str(tiny_model), *flags]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
