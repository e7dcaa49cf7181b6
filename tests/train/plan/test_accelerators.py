"""Names of accelerators, and their compilers."""

import pytest

from cwgnc_train.config import UserError
from cwgnc_train.plan import devices_of, find_slice


@pytest.mark.parametrize(
    ("name", "topology", "devices"),
    [
        ("h100", "1x1x1", 1),
        ("H200:8", "1x8x1", 8),
        ("v5e", "2x2", 1),
        ("v5e:2x4", "2x4", 8),
        ("v5p:2x2x1", "2x2x1", 4),
    ],
)
def test_a_name_says_kind_and_topology(name, topology, devices):
    found = find_slice(name)
    assert (found.topology, found.devices) == (topology, devices)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("h10", "unknown accelerator 'h10', did you mean 'h100'.*a100 l4 v5e v5p v6e"),
        ("", "unknown accelerator ''.* there are h100"),
        ("h100:2x2", "no topology of h100; write h100, or h100:8"),
        ("v5e:8", "no topology of v5e; write v5e, or v5e:2x2"),
        ("v5e:", "no topology"),
        ("h100:0", "no topology"),
    ],
)
def test_unknown_names_are_refused_with_what_there_is(name, message):
    with pytest.raises(UserError, match=message):
        find_slice(name)


@pytest.mark.parametrize(("name", "extra"), [("h100", "cuda13"), ("v6e", "tpu")])
def test_a_missing_compiler_is_named_with_its_install_command(name, extra, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"pip install 'jax\[{extra}\]==\d"):
        devices_of(find_slice(name))
