"""The directive ``annotated``: a source file beside its mathematics.

``.. annotated:: bnrepro/norm/oracle.py`` shows the file in two columns: docstrings and comments at the left, rendered,
and the code that they belong to at the right, with its line numbers. A statement that is a formula has it beside it,
made from the statement itself (`formulas`). The directive's content is YAML: what belongs to a function or class::

    batch_norm_backward:
      tests: [tests/norm/test_function.py::test_the_oracles_gradients_are_the_central_differences]
      claims: [numpynet/N4.4]
      symbols: {projection: "m_2"}

A test, a claim or a name that is not there is a warning, and so an error in CI.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from textwrap import dedent
from typing import Any

import yaml
from docutils import nodes
from docutils.statemachine import StringList
from formulas import formula, lines_of_formulas
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import CppLexer, PythonLexer
from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config as NapoleonConfig
from sphinx.ext.napoleon import GoogleDocstring
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).parents[2]
NAPOLEON = NapoleonConfig(napoleon_use_param=False, napoleon_use_rtype=False)


@dataclass
class Row:
    """Lines of code, and what stands beside them."""

    code: list[tuple[int, str]] = field(default_factory=list)
    """Line numbers, from 1, and lines."""
    note: list[str] = field(default_factory=list)
    formulas: list[str] = field(default_factory=list)
    title: str = ""
    """Of a function or class, which begins here: its qualified name."""
    level: int = 0
    """1: of the module; 2: of a class."""


def python_rows(text: str, symbols: dict[str, dict[str, str]]) -> tuple[str, list[Row]]:
    """The module's docstring, and the rows of the rest."""
    lines, tree = text.splitlines(), ast.parse(text)
    head = ast.get_docstring(tree) or ""
    starts: dict[int, Row] = {}
    gone: set[int] = set()  # lines of docstrings, which stand at the left
    ends: set[int] = set()

    def visit(body: list[ast.stmt], outer: str, level: int) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                name = f"{outer}.{node.name}" if outer else node.name
                first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
                overload = any(isinstance(each, ast.Name) and each.id == "overload" for each in node.decorator_list)
                row = starts[first] = Row(title=name if level < 3 and not overload else "", level=level)
                if ast.get_docstring(node):
                    row.note = (ast.get_docstring(node) or "").splitlines()
                    gone.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
                visit(node.body, name, level + 1)
                ends.add((node.end_lineno or 0) + 1)
                continue
            of = symbols.get("module", {}) | symbols.get(outer.partition(".")[0], {}) | symbols.get(outer, {})
            if isinstance(node, ast.Assign | ast.AugAssign | ast.Return | ast.Expr) and (
                tex := formula(ast.get_source_segment(text, node) or "", of)
            ):
                starts[node.lineno] = Row(formulas=[tex])
                ends.add((node.end_lineno or 0) + 1)
            for name in ("body", "orelse", "finalbody", "handlers"):
                visit(getattr(node, name, []), outer, max(level, 3))

    visit(tree.body, "", 1)
    if head:
        gone.update(range(tree.body[0].lineno, (tree.body[0].end_lineno or 0) + 1))
    return head, list(_joined(lines, starts, ends, gone, "#"))


def cpp_rows(text: str, symbols: dict[str, dict[str, str]]) -> tuple[str, list[Row]]:
    """The comment that the file begins with, and the rows of the rest. A blank line ends what stands at the margin."""
    lines = text.splitlines()
    starts: dict[int, Row] = {}
    ends: set[int] = set()
    names: set[str] = set()
    head = next(i for i, line in enumerate(lines) if not line.startswith("//"))
    outer = ""
    for number, line in enumerate(lines, 1):
        if number <= head:
            continue
        if not lines[number - 2].strip() or (lines[number - 2].startswith(("}", "inline")) and line[:1].strip()):
            ends.add(number)
            name = _cpp_name(lines[number - 1 :])
            outer = name or outer
            if name and name not in names:
                names.add(name)
                starts[number] = Row(title=name, level=1)
        found = [
            tex for each in _cpp_statements(line) if (tex := formula(each, symbols.get(outer) or symbols.get("module")))
        ]
        if found:
            row = starts.setdefault(number, Row())
            row.formulas = found
            ends.add(number + 1)
    gone = set(range(1, head + 1))
    comment = "\n".join(line.removeprefix("//").removeprefix(" ") for line in lines[:head])
    return _cpp_comment(comment), list(_joined(lines, starts, ends, gone, "//"))


def _cpp_name(lines: list[str]) -> str:
    """The struct or function that begins at the margin of the first of ``lines``; "" for anything else."""
    if not re.match(r"[a-z]|//", lines[0]) or lines[0].startswith(("namespace", "extern", "constexpr")):
        return ""
    declaration = " ".join(line for line in lines[:12] if not line.startswith("//")).partition("{")[0]
    declaration = re.sub(r"template <.*?>+ ?", "", declaration)
    found = re.match(r"struct (\w+)", declaration) or re.match(r"[\w:<>*& ]*?\b(\w+)\(", declaration)
    return found[1] if found and not declaration.startswith(("constexpr", "namespace")) else ""


def _cpp_statements(line: str) -> Iterator[str]:
    """The assignments of a line of C++ that Python reads the same, each as Python."""
    text = re.sub(r"//.*", "", line).strip()
    text = re.sub(r"^(?:const )?(?:A|V|T|double|float|auto) (?=\w+ = )", "", text)
    text = re.sub(r"\b(?:A|V|T)\((\d)\)", r"\1", re.sub(r"static_cast<\w+>|std::", "", text))
    if not text.endswith(";") or re.match(r"(const )?int64_t|for ", text):
        return
    depth, start = 0, 0
    for i, letter in enumerate(text):
        depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(letter, 0)
        if depth == 0 and letter in ",;":
            statement = text[start:i].strip()
            if "=" in statement or statement.startswith("return "):
                yield statement
            start = i + 1


def _cpp_comment(text: str) -> str:
    """A comment as reStructuredText: lines indented by four are formulas, by two items of a list."""
    found: list[str] = []
    for line in text.splitlines():
        wide = len(line) - len(line.lstrip())
        if wide >= 4 and lines_of_formulas(line.strip()):
            found += ([] if found and found[-1].startswith("    ") else ["", "::", ""]) + [line]
        elif wide in (2, 3):
            found += ["", f"- {line.strip()}"]
        elif wide > 3 and found and found[-1].startswith(("- ", "  ")):
            found += [f"  {line.strip()}"]
        else:
            found += ([""] if found and found[-1].startswith(("    ", "- ", "  ")) else []) + [line]
    return "\n".join(found)


def _joined(lines: list[str], starts: dict[int, Row], ends: set[int], gone: set[int], mark: str) -> Iterator[Row]:
    """The rows in order: comments go to the code below them, and code without a note to the row before."""
    row, comment = Row(), []
    for number, line in enumerate(lines, 1):
        if number in gone:
            continue
        stripped = line.strip()
        if (stripped.startswith(mark) and "noqa" not in stripped) or not stripped:
            if stripped:
                comment.append(re.sub(r"^-+ (.*?) -+$", r"**\1**\n", stripped.removeprefix(mark).removeprefix(" ")))
            elif row.code:
                row.code.append((number, line))
            if number in starts:
                starts.setdefault(number + 1, starts.pop(number))
            if number in ends:
                ends.add(number + 1)
            continue
        if number in starts or number in ends or comment:
            if row.code or row.note:
                yield row
            row = starts.get(number, Row())
            if comment:
                text = _cpp_comment("\n".join(comment)) if mark == "//" else "\n".join(comment)
                row.note, comment = [*row.note, "", *text.splitlines()], []
        row.code.append((number, line))
    if row.code:
        yield row


class Annotated(SphinxDirective):
    """See the module's description."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        """A contents line, the module's description, and a section for each function and class."""
        self.file = self.arguments[0]
        source = ROOT / self.file
        self.env.note_dependency(str(source))
        self.about: dict[str, dict[str, Any]] = yaml.safe_load("\n".join(self.content)) or {}
        everywhere = self.about.get("module", {}).get("symbols", {})
        symbols = {name: everywhere | about.get("symbols", {}) for name, about in self.about.items()}
        text, cpp = source.read_text(encoding="utf-8"), source.suffix == ".cpp"
        head, rows = (cpp_rows if cpp else python_rows)(text, symbols)
        self.lexer = CppLexer(stripnl=False) if cpp else PythonLexer(stripnl=False)
        self.name = source.name.replace(".", "-")
        titles = {row.title for row in rows if row.title}
        for name in self.about.keys() - titles - {"module"}:
            self.warn(f"{self.file} has no {name}")
        self.symbols: dict[str, str] = {}
        intro = nodes.container("", *self.prose(head), *self.links("module"), classes=["annotated-head"])
        made: list[nodes.Node] = [intro, self.contents([row for row in rows if row.title and row.level == 1])]
        section: nodes.Element | None = None
        for row in rows:
            if row.title:
                self.symbols = everywhere | symbols.get(row.title.partition(".")[0], {}) | symbols.get(row.title, {})
            if row.title and row.level == 1:
                section = nodes.section("", nodes.title(row.title, "", nodes.literal("", row.title)))
                section["ids"].append(self.anchor(row.title))
                section["names"].append(self.anchor(row.title))
                made.append(section)
            (made.append if section is None else section.append)(self.shown(row))
        return made

    def warn(self, message: str) -> None:
        self.state.document.reporter.warning(message, line=self.lineno)

    def anchor(self, title: str) -> str:
        return f"{self.name}-{title.replace('.', '-').strip('_')}".lower()

    def contents(self, rows: list[Row]) -> nodes.Node:
        """The functions and classes as links in one paragraph."""
        paragraph = nodes.paragraph(classes=["annotated-contents"])
        for row in rows:
            paragraph += [nodes.reference("", "", nodes.literal("", row.title), refid=self.anchor(row.title))]
            paragraph += [nodes.Text(" ")]
        return paragraph

    def shown(self, row: Row) -> nodes.Node:
        """One row of the two columns."""
        note = nodes.container(classes=["note"])
        if row.title and row.level == 2:
            name = nodes.paragraph("", "", nodes.literal("", row.title.rpartition(".")[2]), classes=["method"])
            name["ids"].append(self.anchor(row.title))
            note += name
        note += self.prose("\n".join(row.note))
        for tex in row.formulas:
            note += nodes.math_block(tex, tex, nowrap=False, number=None, label=None)
        if row.title:
            note += self.legend(row.title)
            note += self.links(row.title)
        while row.code and not row.code[-1][1].strip():
            row.code.pop()
        wide = " wide" if not note.children else ""
        return nodes.container("", note, self.code(row), classes=[f"annotated-row{wide}"])

    def legend(self, title: str) -> list[nodes.Node]:
        """What the letters stand for that a function's formulas have beside those of all pages."""
        symbols = self.about.get(title, {}).get("symbols", {})
        if not symbols:
            return []
        paragraph = nodes.paragraph("", "Symbols: ", classes=["legend"])
        for i, (name, tex) in enumerate(symbols.items()):
            paragraph += [nodes.Text(", " if i else ""), nodes.math(tex, tex), nodes.Text(" "), nodes.literal("", name)]
        return [paragraph]

    def code(self, row: Row) -> nodes.Node:
        """The code of a row, with a link at each line's number."""
        text = "\n".join(line for _, line in row.code)
        written = highlight(text, self.lexer, HtmlFormatter(nowrap=True)).rstrip("\n").split("\n")
        lines = "".join(
            f'<span class="line" id="{self.name}-l{n}"><a class="number" href="#{self.name}-l{n}">{n}</a>{line}</span>'
            for (n, _), line in zip(row.code, written, strict=True)
        )
        label = f"{self.file}, line {row.code[0][0] if row.code else 1}"
        html = f'<div class="code highlight" role="group" aria-label="{label}" tabindex="0"><pre>{lines}</pre></div>'
        return nodes.raw("", html, format="html")

    def prose(self, text: str) -> list[nodes.Node]:
        """A docstring or comment as nodes; blocks and literals that are formulas become mathematics."""
        if not text.strip():
            return []
        rst = str(GoogleDocstring(dedent(text), NAPOLEON, self.env.app, what="function"))
        box = nodes.container()
        self.state.nested_parse(StringList(rst.splitlines(), source=self.file), 0, box)
        for block in list(box.findall(nodes.literal_block)):
            if found := lines_of_formulas(block.astext(), self.symbols):
                block.replace_self([_formula_with_remark(tex, remark) for tex, remark in found])
        for literal in list(box.findall(nodes.literal)):
            if tex := formula(literal.astext().replace("^", "**"), self.symbols):
                literal.replace_self(nodes.math(tex, tex))
        return list(box.children)

    def links(self, title: str) -> list[nodes.Node]:
        """The tests of a function, folded, and the claims that rest on it."""
        about = self.about.get(title, {})
        made: list[nodes.Node] = []
        for test in about.get("tests", []):
            if not (code := self.test(test)):
                self.warn(f"there is no test {test}")
                continue
            name = test.partition("::")[2]
            shown = highlight(code, PythonLexer(), HtmlFormatter(nowrap=True))
            summary = f"<summary>Test: <code>{escape(name)}</code></summary>"
            html = (
                f'<details class="test">{summary}<div class="highlight" tabindex="0"><pre>{shown}</pre></div></details>'
            )
            made.append(nodes.raw("", html, format="html"))
        if claims := about.get("claims"):
            box = nodes.container()
            text = "Claims that rest on it: " + ", ".join(f":claim:`{claim}`" for claim in claims)
            self.state.nested_parse(StringList([text], source=self.file), 0, box)
            made += box.children
        return made

    def test(self, name: str) -> str:
        """The source of ``FILE::FUNCTION``, headed by its file and line."""
        file, _, function = name.partition("::")
        path = ROOT / file
        if not path.is_file():
            return ""
        self.env.note_dependency(str(path))
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.name == function:
                first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
                body = "\n".join(text.splitlines()[first - 1 : node.end_lineno])
                return f"# {file}, line {node.lineno}\n{body}"
        return ""


def _formula_with_remark(tex: str, remark: str) -> nodes.Node:
    row = nodes.container(classes=["formula"])
    row += nodes.math_block(tex, tex, nowrap=False, number=None, label=None)
    if remark:
        row += nodes.paragraph(remark, remark, classes=["remark"])
    return row


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("annotated", Annotated)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
