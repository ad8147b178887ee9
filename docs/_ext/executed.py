"""Code that is run when a page is made: the directive ``run``, and notebooks.

Numbers in the explanations are what the package computes, so that none of them can go stale. The blocks of a page share
their names, run from the root of the checkout, and may train nothing; what they print and draw stands below them. A
notebook is a script in jupytext's percent format; its page is made of such blocks.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import traceback
from pathlib import Path
from typing import Any, ClassVar

import jupytext
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).parents[2]
NOTEBOOKS = "notebooks"
FIGURES = "_generated"


class Run(SphinxDirective):
    """Python that is executed; ``:alt:`` says what its figure shows, ``:hide-code:`` leaves the code out."""

    has_content = True
    option_spec: ClassVar = {
        "hide-code": directives.flag,
        "alt": directives.unchanged,
        "caption": directives.unchanged,
    }

    def run(self) -> list[nodes.Node]:
        """The code, what it printed, and its figures."""
        code = "\n".join(self.content)
        names = self.env.temp_data.setdefault("names of run", {"__name__": "__main__"})
        made: list[nodes.Node] = []
        if "hide-code" not in self.options:
            made.append(nodes.literal_block(code, code, language="python", classes=["executed"]))
        try:
            printed = executed(code, names, f"{self.env.docname}, line {self.lineno}")
        except Exception:
            message = f"the code of this block fails:\n{traceback.format_exc(limit=-3)}"
            return [self.state.document.reporter.warning(message, line=self.lineno)]
        if printed.strip():
            made.append(nodes.literal_block(printed.rstrip(), printed.rstrip(), language="text", classes=["output"]))
        return made + self.figures()

    def figures(self) -> list[nodes.Node]:
        """What was drawn, as SVG."""
        from matplotlib import pyplot

        made: list[nodes.Node] = []
        for number in pyplot.get_fignums():
            count = self.env.temp_data["figures"] = self.env.temp_data.get("figures", 0) + 1
            name = f"{FIGURES}/{self.env.docname.replace('/', '-')}-{count}.svg"
            file = Path(self.env.srcdir) / name
            file.parent.mkdir(exist_ok=True)
            pyplot.figure(number).savefig(file, bbox_inches="tight", metadata={"Date": None})
            pyplot.close(number)
            if "alt" not in self.options:
                self.state.document.reporter.warning("a figure needs an :alt: text", line=self.lineno)
            alt = self.options.get("alt", "")
            figure = nodes.figure("", nodes.image(uri=f"/{name}", alt=alt))
            if caption := self.options.get("caption"):
                figure += nodes.caption(caption, "", *self.parse_inline(caption)[0])
            made.append(figure)
        return made


def executed(code: str, names: dict[str, Any], where: str) -> str:
    """Run ``code`` with ``names`` from the root of the checkout; what it printed."""
    before, printed = Path.cwd(), io.StringIO()
    os.chdir(ROOT)
    try:
        with contextlib.redirect_stdout(printed):
            exec(compile(code, where, "exec"), names)
    finally:
        os.chdir(before)
    return printed.getvalue()


def write_notebooks(app: Sphinx) -> None:
    """The page of each notebook, and the notebook as Jupyter has it."""
    folder = Path(app.srcdir) / NOTEBOOKS
    (Path(app.srcdir) / FIGURES).mkdir(exist_ok=True)
    for script in sorted(folder.glob("*.py")):
        notebook = jupytext.read(script)
        download = Path(app.srcdir) / FIGURES / f"{script.stem}.ipynb"
        jupytext.write(notebook, download)
        note = (
            f"This page is the script `docs/{NOTEBOOKS}/{script.name}`, executed when the site was built. "
            f"{{download}}`As a Jupyter notebook </{FIGURES}/{download.name}>`."
        )
        parts = [_cell(cell) for cell in notebook.cells]
        title, _, rest = parts[0].partition("\n")
        write_if_changed(script.with_suffix(".md"), "\n\n".join([title, note, rest.strip(), *parts[1:]]) + "\n")


def _cell(cell: Any) -> str:
    if cell.cell_type == "markdown":
        return str(cell.source)
    options = [f":{name}: {cell.metadata[name]}" for name in ("alt", "caption") if name in cell.metadata]
    return "\n".join(["```{run}", *options, *([""] if options else []), cell.source, "```"])


def write_if_changed(file: Path, text: str) -> None:
    """Leave a file as it is that says this already, so that Sphinx need not read it again."""
    file.parent.mkdir(exist_ok=True)
    if not file.is_file() or file.read_text(encoding="utf-8") != text:
        file.write_text(text, encoding="utf-8")


def _prepare(app: Sphinx, config: Any) -> None:
    import matplotlib

    for name in ("onnx_ir", "onnxscript"):
        logging.getLogger(name).setLevel(logging.WARNING)
    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "bnrepro", "savefig.transparent": False}


def _afresh(app: Sphinx, docname: str, text: list[str]) -> None:
    """Each page begins with the same random numbers."""
    if "{run}" in text[0]:
        import torch

        torch.manual_seed(0)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive and the notebooks."""
    app.add_directive("run", Run)
    app.connect("config-inited", _prepare)
    app.connect("builder-inited", write_notebooks)
    app.connect("source-read", _afresh)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
