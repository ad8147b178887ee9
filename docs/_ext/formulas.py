"""Formulas from source: an assignment's syntax tree as TeX, and TeX as MathML.

``dx = rstd * (dxhat - mean_S(dxhat))`` reads the same in a docstring, in a comment and in the code, and each of them is
parsed here. What is no mathematics (a call that is not listed, a dictionary, a comparison) has no formula.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from functools import cache

from latex2mathml.converter import convert

SYMBOLS = {
    "x": "x",
    "y": "y",
    "wide": "x",
    "mean": r"\mu",
    "mu": r"\mu",
    "var": r"\sigma^2",
    "eps": r"\epsilon",
    "rstd": "r",
    "xhat": r"\hat{x}",
    "weight": r"\gamma",
    "w": r"\gamma",
    "gamma": r"\gamma",
    "bias": r"\beta",
    "b": r"\beta",
    "beta": r"\beta",
    "dy": r"\bar{y}",
    "dx": r"\bar{x}",
    "dxhat": r"\bar{\hat{x}}",
    "dweight": r"\bar{\gamma}",
    "dbias": r"\bar{\beta}",
    "tx": r"\dot{x}",
    "ty": r"\dot{y}",
    "tweight": r"\dot{\gamma}",
    "tbias": r"\dot{\beta}",
    "delta": r"\delta",
    "axes": "S",
    "count": "m",
    "values": "m",
    "momentum": r"\alpha",
    "running_mean": r"\mu_{\mathrm{run}}",
    "running_var": r"\sigma^2_{\mathrm{run}}",
}
"""Names of the package's sources that have a symbol of their own. Others are written upright, as they are."""

MEANINGS = {
    "mean": "mean over S",
    "var": "biased variance over S",
    "rstd": "1 / sqrt(var + eps)",
    "xhat": "normalized input",
    "weight": "gain",
    "bias": "shift",
    "dy": "dL/dy, the upstream gradient",
    "dx": "dL/dx",
    "dxhat": "dL/dxhat",
    "dweight": "dL/dgamma",
    "dbias": "dL/dbeta",
    "tx": "tangent of x",
    "ty": "tangent of y",
    "momentum": "weight of the new batch",
}

ARITHMETIC = {ast.Add: ("+", 1), ast.Sub: ("-", 1), ast.Mult: (r"\,", 2), ast.Div: ("/", 2), ast.Pow: ("^", 4)}
TRANSPARENT = {"asarray", "to", "view", "reshape", "keepdims", "detach", "astype", "float", "widen", "against", "dense"}
TRANSPARENT |= {"max", "static_cast", "finite_or_zero", "load", "_in_format", "of"}
"""Calls that change how a value is stored, and not which value it is."""


OWNERS = {"self", "ctx", "cache", "call", "tile", "own"}
"""Objects whose attributes are written without them: ``cache.rstd`` is r."""


class NoFormula(ValueError):
    """The expression is code, and no mathematics."""


def formula(text: str, symbols: dict[str, str] | None = None) -> str | None:
    """TeX of an assignment or expression; None if there is none, or nothing is computed in it."""
    try:
        (statement,) = ast.parse(text.strip()).body
        return _Writer({**SYMBOLS, **(symbols or {})}).statement(statement)
    except (SyntaxError, NoFormula, ValueError):
        return None


@cache
def mathml(tex: str, display: bool = False) -> str:
    """``tex`` as a MathML element, which carries it as its text for copying and for screen readers."""
    found = convert(tex, display="block" if display else "inline")
    label = tex.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")
    return found.replace("<math ", f'<math alttext="{label}" ', 1)


class _Writer:
    """Writes expressions as TeX; precedence decides where brackets are."""

    def __init__(self, symbols: dict[str, str]) -> None:
        self.symbols = symbols
        self.computes = False
        self.known = False

    def statement(self, node: ast.stmt) -> str:
        match node:
            case ast.Assign(targets=[target], value=value):
                names = {each.id for each in ast.walk(value) if isinstance(each, ast.Name)}
                again = isinstance(target, ast.Name) and target.id in names
                sign = r"\leftarrow" if again else "="
                written = f"{self.target(target)} {sign} {self.of(value)}"
            case ast.AugAssign(target=target, op=op, value=value) if type(op) in ARITHMETIC:
                name, (sign, level) = self.target(target), ARITHMETIC[type(op)]
                self.computes = True
                written = rf"{name} \leftarrow {name} {sign} {self.of(value, level + 1)}"
            case ast.Return(value=value) | ast.Expr(value=value) if value is not None:
                written = self.of(value)
            case _:
                raise NoFormula
        if not (self.computes and self.known):
            raise NoFormula
        return written

    def target(self, node: ast.expr) -> str:
        if isinstance(node, ast.Name | ast.Subscript):
            return self.of(node)
        raise NoFormula

    def name(self, name: str) -> str:
        if name in self.symbols:
            self.known = True
            return self.symbols[name]
        if len(name) == 1:
            return name
        upright = name.strip("_").replace("_", r"\_")
        return rf"\mathrm{{{upright}}}"

    def of(self, node: ast.expr, level: int = 0) -> str:
        match node:
            case ast.Name(id=name):
                return self.name(name)
            case ast.Attribute(value=ast.Name(id=owner), attr=name):
                return self.name(name) if owner in OWNERS else rf"{{{self.name(name)}}}_{{\mathrm{{{owner}}}}}"
            case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
                return f"{value:g}"
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return self.bracketed(f"-{self.of(operand, 2)}", 2, level)
            case ast.BinOp(left=left, op=ast.Div(), right=right):
                self.computes = True
                return rf"\frac{{{self.of(left)}}}{{{self.of(right)}}}"
            case ast.BinOp(left=left, op=ast.Pow(), right=right):
                self.computes = True
                return f"{{{self.of(left, 5)}}}^{{{self.of(right)}}}"
            case ast.BinOp(left=left, op=op, right=right) if type(op) in ARITHMETIC:
                self.computes = True
                sign, own = ARITHMETIC[type(op)]
                return self.bracketed(f"{self.of(left, own)} {sign} {self.of(right, own + 1)}", own, level)
            case ast.IfExp(test=test, body=body, orelse=other):
                return self.cases(ast.unparse(test), self.of(body), self.of(other))
            case ast.Tuple(elts=values):
                return r", \quad ".join(self.of(value) for value in values)
            case ast.Subscript(value=value, slice=ast.Name(id=index)):
                return f"{{{self.of(value)}}}_{{{index}}}"
            case ast.Call(func=ast.Name(id=name), args=args):
                return self.call(name, list(args), level)
            case ast.Call(func=ast.Attribute(value=ast.Name(id="np" | "torch" | "std" | "math"), attr=name), args=args):
                return self.call(name, list(args), level)
            case ast.Call(func=ast.Attribute(value=value, attr=name), args=args):
                return self.call(name, [value, *args], level)
        raise NoFormula

    def cases(self, test: str, one: str, two: str) -> str:
        """Both, one below the other; or one, if the other is the same sum or product in another order."""
        if sorted(one.split()) == sorted(two.split()) and not {"-", "/"} & set(one.split()):
            return two
        return rf"\begin{{cases}} {one} & \text{{if {test}}} \\ {two} & \text{{otherwise}} \end{{cases}}"

    def bracketed(self, written: str, own: int, level: int) -> str:
        return rf"\left({written}\right)" if own < level else written

    def call(self, name: str, args: list[ast.expr], level: int) -> str:
        if name in TRANSPARENT and args:
            return self.of(args[0], level)
        if name not in CALLS:
            raise NoFormula
        self.computes = True
        return CALLS[name](self, args, level)

    def pooled(self, what: str, over: str, value: ast.expr) -> str:
        return rf"\mathrm{{{what}}}_{{{over}}}\left({self.of(value)}\right)"


def _fused(writer: _Writer, args: list[ast.expr], level: int) -> str:
    """``addcmul(a, b, c)``: a + b c."""
    a, b, c = args
    return writer.bracketed(rf"{writer.of(a, 1)} + {writer.of(b, 3)} \, {writer.of(c, 3)}", 1, level)


def _lerp(writer: _Writer, args: list[ast.expr], level: int) -> str:
    """``running.lerp_(batch, weight)``."""
    old, new, weight = (writer.of(arg, 3) for arg in args)
    return rf"{old} \leftarrow \left(1 - {weight}\right) {old} + {weight} \, {new}"


def _affine(writer: _Writer, args: list[ast.expr], level: int) -> str:
    """``affine(xhat, weight, bias)``, either of them None."""
    xhat, weight, bias = args
    none = [isinstance(each, ast.Constant) and each.value is None for each in (weight, bias)]
    scaled = writer.of(xhat, 1) if none[0] else rf"{writer.of(weight, 3)} \, {writer.of(xhat, 3)}"
    return scaled if none[1] else writer.bracketed(f"{scaled} + {writer.of(bias, 1)}", 1, level)


def _clamped(writer: _Writer, args: list[ast.expr], level: int) -> str:
    """``v.clamp(min=0)``."""
    return rf"\max\left(0, {writer.of(args[0])}\right)"


CALLS: dict[str, Callable[[_Writer, list[ast.expr], int], str]] = {
    "mean": lambda w, a, _: w.pooled("mean", "S", a[0]),
    "mean_S": lambda w, a, _: w.pooled("mean", "S", a[0]),
    "pooled_mean": lambda w, a, _: w.pooled("mean", "S", a[0]),
    "mean_batch": lambda w, a, _: w.pooled("mean", "N", a[0]),
    "pool": lambda w, a, _: w.pooled("pool", "k", a[0]),
    "_pool": lambda w, a, _: w.pooled("pool", "k", a[-1]),
    "sum": lambda w, a, level: w.bracketed(rf"\sum {w.of(a[0], 2)}", 1, level),
    "_sum_to": lambda w, a, level: w.bracketed(rf"\sum {w.of(a[0], 2)}", 1, level),
    "sqrt": lambda w, a, _: rf"\sqrt{{{w.of(a[0])}}}",
    "rsqrt": lambda w, a, _: rf"\frac{{1}}{{\sqrt{{{w.of(a[0])}}}}}",
    "reciprocal": lambda w, a, _: rf"\frac{{1}}{{{w.of(a[0])}}}",
    "reciprocal_std": lambda w, a, _: rf"\frac{{1}}{{\sqrt{{{w.of(a[0])} + {w.of(a[1])}}}}}",
    "square": lambda w, a, _: rf"{{{w.of(a[0], 5)}}}^{{2}}",
    "abs": lambda w, a, _: rf"\left|{w.of(a[0])}\right|",
    "sub_": lambda w, a, level: w.bracketed(f"{w.of(a[0], 1)} - {w.of(a[1], 2)}", 1, level),
    "not_negative": _clamped,
    "clamp": _clamped,
    "addcmul": _fused,
    "lerp_": _lerp,
    "affine": _affine,
    "scale_and_shift": _affine,
}


def lines_of_formulas(block: str, symbols: dict[str, str] | None = None) -> list[tuple[str, str]] | None:
    """(TeX, remark) of each line of a literal block that holds formulas alone; None where it holds anything else.

    A line that begins more than ten columns further right than the first goes on with the remark before it.
    """
    found: list[tuple[str, str]] = []
    start = len(block) - len(block.lstrip())
    for line in block.splitlines():
        if not line.strip():
            continue
        if found and len(line) - len(line.lstrip()) > start + 10:
            tex, remark = found[-1]
            found[-1] = (tex, f"{remark} {line.strip()}".strip())
            continue
        parts = re.match(r"(\w+)\s*=\s*(.*?)(?:\s{3,}(.*))?$", line.strip())
        tex = formula(f"{parts[1]} = {parts[2].replace('^', '**')}", symbols) if parts else None
        if parts is None or tex is None:
            return None
        found.append((tex, parts[3] or ""))
    return found or None
