"""The Python of the README runs, block after block."""

import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def test_the_python_of_the_readme_runs_as_it_stands(capsys):
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.S | re.M)
    assert len(blocks) == 3
    names = {}
    for block in blocks:
        exec(compile(block, README.name, "exec"), names)
    assert "dense/kernel" in names["norms"]
    printed = capsys.readouterr().out.split()
    assert float(printed[0]) == float(names["norms"]["dense/kernel"])
    assert float(printed[1]) == 0.8
