"""Pages as a terminal shows them."""

import re

import pytest

from steadygrad import rules
from steadygrad.knowledge import SECTIONS, causes, explain, plain

NAMES = (None, *causes(), *(rule.code for rule in rules.RULES))


PAGE = """# title

## Head
first line,
second `line`.
- one
  more
- two

End:

    y = 2
      deep

```py
# no head

- no item
```
"""
SHOWN = """title

Head
  first line, second line.

  - one more
  - two

  End:

      y = 2
        deep

      # no head

      - no item
"""


def test_each_kind_of_block():
    assert plain(PAGE, 80) == SHOWN


def test_before_a_second_heading_nothing_is_indented():
    assert plain("# G1 rule\n\nSays\nthis.\n\n    a = b\n", 80) == "G1 rule\n\nSays this.\n\n    a = b\n"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [40, 80, 100])
def test_nothing_is_lost_and_no_line_of_text_is_too_long(name, width):
    page = explain(name)
    shown = plain(page, width)
    words = re.sub(r"^```.*$|^#+ |`", "", page, flags=re.M).split()
    assert shown.split() == words
    assert "```" not in shown and not re.search(r"^#", shown, re.M)
    assert not re.search(r"\n\n\n|[ \t]$", shown, re.M)
    code = {line.strip() for line in page.splitlines()}
    for line in shown.splitlines():
        assert len(line) <= width or line.strip() in code or len(line.split()) <= 2


@pytest.mark.parametrize("name", causes())
def test_headings_stand_out(name):
    lines = plain(explain(name), 100).splitlines()
    flush = [line for line in lines if line and not line.startswith(" ")]
    assert flush == [name, *SECTIONS]
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize("name", causes())
def test_code_can_be_copied(name):
    shown = plain(explain(name), 40)
    for block in re.findall(r"^```py\n(.*?)^```", explain(name), re.M | re.S):
        assert "".join(f"      {line}".rstrip() + "\n" for line in block.splitlines()) in shown


def test_width_is_kept_in_bounds():
    page = explain("lr_too_large")
    assert plain(page, 1) == plain(page, 40) and plain(page, 500) == plain(page, 100)
