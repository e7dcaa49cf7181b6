import subprocess
import sys

import pytest


@pytest.mark.slow
def test_a_run_killed_at_random_moments_comes_to_the_same_bits():
    command = [sys.executable, "-m", "tests.faults.kills", "--count", "25"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
