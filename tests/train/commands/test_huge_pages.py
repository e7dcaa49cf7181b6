import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cwgnc_train.commands import huge_pages, use_huge_pages

ROOT = Path(__file__).parents[3]
SET = "glibc.malloc.hugetlb=1"
SAY = "print('started', os.getpid(), os.environ.get('GLIBC_TUNABLES'), flush=True)\n"
START = "import os, subprocess, sys\nfrom cwgnc_train.commands import use_huge_pages\n"

needs_glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="huge pages are a matter of glibc"
)


def run(command, tunables=None):
    """Runs Python; returns it with the lines that its processes said."""
    env = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    if tunables is not None:
        env["GLIBC_TUNABLES"] = tunables
    process = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=env, capture_output=True, text=True
    )
    return process, [line.split() for line in process.stdout.splitlines()]


@needs_glibc
def test_the_process_is_started_anew_once_and_stays_itself():
    code = START + SAY + "use_huge_pages()\nprint(*sys.argv)\nsys.exit(3)"
    process, (before, after, arguments) = run(["-c", code, "two words", "-x"])
    assert before[2] == "None" and after[2] == SET
    assert before[1] == after[1]
    assert arguments == ["-c", "two", "words", "-x"]
    assert process.returncode == 3 and not process.stderr


@needs_glibc
def test_a_signal_ends_the_process_itself():
    code = START + "use_huge_pages()\nos.kill(os.getpid(), 15)"
    assert run(["-c", code])[0].returncode == -signal.SIGTERM


@needs_glibc
def test_a_child_process_is_not_started_anew():
    child = START + SAY + "use_huge_pages()"
    code = (
        START + f"use_huge_pages()\nsubprocess.run([sys.executable, '-c', {child!r}])"
    )
    _, lines = run(["-c", code])
    assert [line[2] for line in lines] == [SET]


@needs_glibc
def test_other_tunables_are_kept():
    other = "glibc.malloc.arena_max=2"
    _, lines = run(["-c", START + SAY + "use_huge_pages()"], other)
    assert [line[2] for line in lines] == [other, f"{other}:{SET}"]


@pytest.mark.parametrize("value", ["glibc.malloc.hugetlb=0", f"a.b.c=1:{SET}"])
def test_a_value_of_the_users_is_left_alone(value, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", value)
    monkeypatch.setattr(os, "execv", None)
    use_huge_pages()
    assert os.environ["GLIBC_TUNABLES"] == value


@pytest.mark.parametrize("libc", [("", ""), ("libc", "1.2.4")])
def test_without_glibc_nothing_happens(libc, monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(huge_pages.platform, "libc_ver", lambda: libc)
    monkeypatch.setattr(os, "execv", None)
    use_huge_pages()
    assert "GLIBC_TUNABLES" not in os.environ


@needs_glibc
def test_commands_are_started_anew_before_anything_heavy_is_imported():
    command = ["-X", "importtime", "-m", "cwgnc_train"]
    process, _ = run([*command, "finetune", "--help"])
    imported = [line.rpartition("|")[2].strip() for line in process.stderr.splitlines()]
    again = imported.index("cwgnc_train.commands.huge_pages") + 1
    assert imported.count("cwgnc_train.commands.huge_pages") == 2
    assert "tyro" in imported[again:] and "tyro" not in imported[:again]
    assert process.returncode == 0 and "usage:" in process.stdout
    assert run([*command[2:], "no-command"])[0].returncode == 2
