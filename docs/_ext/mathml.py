"""Mathematics as MathML: nothing is loaded, and browsers read it out."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from formulas import mathml
from sphinx.application import Sphinx


def _inline(translator: Any, node: nodes.Node) -> None:
    translator.body.append(mathml(node.astext()))
    raise nodes.SkipNode


def _block(translator: Any, node: nodes.Node) -> None:
    written = mathml(_aligned(node.astext()), display=True)
    translator.body.append(f'<div class="math-block" tabindex="0" role="group" aria-label="formula">{written}</div>\n')
    raise nodes.SkipNode


def _aligned(tex: str) -> str:
    """What is broken into lines needs an environment."""
    return rf"\begin{{aligned}}{tex}\end{{aligned}}" if r"\\" in tex and r"\begin" not in tex else tex


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the renderer ``mathml``."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
