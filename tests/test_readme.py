"""README.md's examples run as they stand and print what it shows, and its two commands are there."""

import contextlib
import io
import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", README, re.DOTALL)


def test_every_python_block_shows_its_output():
    assert len(EXAMPLES) == README.count("```python") == 2


@pytest.mark.parametrize(("code", "shown"), EXAMPLES, ids=["first example", "training step"])
def test_example_prints_what_is_shown(code, shown):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    assert printed.getvalue() == shown


@pytest.mark.parametrize(
    "command",
    [
        'python -m pip install -e ".[bench]" && python -m benchmarks',
        'python -m pip install -e ".[test]" && python -m pytest',
    ],
)
def test_command_stands_alone_in_a_block(command):
    assert f"```sh\n{command}\n```" in README
