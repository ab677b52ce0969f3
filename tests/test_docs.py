"""The code on the pages of the documentation, and in the README, does what they say.

All ```python blocks of a page are run one after the other in one namespace. A block with ``>>>`` is
a doctest. A block that is followed by a ```text block prints exactly that. A block after the line
``<!-- not run -->`` (with a reason, if it is not plain) is left out.
"""

import contextlib
import doctest
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if not {"_build", "auto_examples"} & set(page.parts)]
BLOCK = re.compile(
    r"(?P<skip><!-- not run.*-->\n)?^```python\n(?P<code>.*?)^```$"
    r"(?:\s*^```text\n(?P<printed>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def blocks(page):
    """Line number, code and expected output (or None) of what is to be run."""
    text = page.read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        if not found["skip"]:
            yield text.count("\n", 0, found.start("code")), found["code"], found["printed"]


def run(page):
    names = {"__name__": "__main__"}
    for line, code, printed in blocks(page):
        if ">>> " in code:
            examples = doctest.DocTestParser().get_doctest(code, names, page.name, str(page), line)
            runner = doctest.DocTestRunner(optionflags=FLAGS)
            report = io.StringIO()
            runner.run(examples, out=report.write, clear_globs=False)
            names |= examples.globs
            assert not runner.failures, report.getvalue()
            continue
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(compile("\n" * line + code, page, "exec"), names)
        if printed is not None:
            assert output.getvalue() == printed


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_code_of_a_page_does_what_it_says(page):
    run(page)


def test_the_readme_begins_with_an_example_of_ten_lines():
    _, code, printed = next(blocks(ROOT / "README.md"))
    assert len(code.splitlines()) <= 10
    assert printed.count("\n") == 4


@pytest.mark.parametrize(
    "page",
    [
        "```python\n>>> 1 + 1\n3\n```\n",
        "```python\nprint(1)\n```\n\n```text\n2\n```\n",
        "```python\nx = 1\n```\n\n```python\n>>> x\n2\n```\n",
    ],
)
def test_a_wrong_page_is_found(page, tmp_path):
    (tmp_path / "page.md").write_text(page)
    with pytest.raises(AssertionError):
        run(tmp_path / "page.md")
