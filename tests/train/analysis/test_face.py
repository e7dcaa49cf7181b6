import subprocess
import sys

from cwgnc_train.analysis.labels import method_rank
from cwgnc_train.config import METHODS
from tests.train.analysis.conftest import run_record, write_study

IMPORT = """
import logging, sys, warnings

before = list(warnings.filters), logging.root.level
import matplotlib

level = logging.getLogger("matplotlib").level
settings = {name: matplotlib.rcParams[name] for name in ("font.size", "svg.hashsalt")}

from cwgnc_train import analysis

assert not {"jax", "cwgnc_jax", "matplotlib.pyplot"} & set(sys.modules)
assert before[1] == logging.root.level
for write in (analysis.write_report, analysis.draw_curves):
    write(sys.argv[1])
assert not {"jax", "matplotlib.pyplot"} & set(sys.modules)
assert matplotlib.get_backend(auto_select=False) is None
assert logging.getLogger("matplotlib").level == level
assert all(matplotlib.rcParams[name] == value for name, value in settings.items())
"""


def test_nothing_is_switched_for_the_whole_process(tmp_path):
    run = "rte/finetune/lr=2e-05/max_norm=0.05/seed=1"
    folder = write_study(tmp_path, [run_record(run, 0.6)])
    subprocess.run([sys.executable, "-c", IMPORT, str(folder)], check=True)


def test_every_method_has_a_label_and_a_rank():
    unknown, _ = method_rank("unknown")
    for name in [*METHODS, "finetune"]:
        rank, _ = method_rank(name)
        assert rank < unknown, name
