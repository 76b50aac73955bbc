"""Write docs/causes.md and docs/causes/ from the pages of the package. A test checks that they are fresh.

python docs/generate_knowledge.py
"""

from __future__ import annotations

import re
from pathlib import Path

from steadygrad.knowledge import cause_page, causes, summary

DOCS = Path(__file__).parent

HEAD = """# Causes

What can be wrong with a training run, one page each: how it looks, why it happens, what cures it and what does not.
`steadygrad explain NAME` shows the same pages in a terminal. In their code `sg` is steadygrad, `F` is
`torch.nn.functional`, and model, optimizer, loss_fn, x, y and the like are yours. The pages are files of the package
(`python docs/generate_knowledge.py`).

"""


def index() -> str:
    """The page that leads to the others."""
    rows = ["| cause | in one sentence |", "|---|---|"]
    rows += [f"| [{name}](causes/{name}.md) | {summary(name)} |" for name in causes()]
    return HEAD + "\n".join(rows) + "\n"


def linked(page: str) -> str:
    """With the papers and the other causes as links."""
    page = re.sub(r"`(\w+)`", lambda m: f"[{m[0]}]({m[1]}.md)" if m[1] in causes() else m[0], page)
    page = re.sub(r"arXiv\s(\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", page)
    return re.sub(r"(?<![(<`])(https?://[^\s,;)]+[^\s,;).])(?!\))", r"<\1>", page)


def pages() -> dict[str, str]:
    """File name below docs/ to text."""
    return {"causes.md": index()} | {f"causes/{name}.md": linked(cause_page(name)) for name in causes()}


if __name__ == "__main__":
    (DOCS / "causes").mkdir(exist_ok=True)
    for name, text in pages().items():
        (DOCS / name).write_text(text)
