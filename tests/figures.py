"""Print the size and the shape of the code: `python -m tests.figures`, the last step of `make check`.

Sizes stand beside those of 29 November 2026, when the rooms had just been laid and a forecast opened KNMI's files only;
figures of shape beside those from before the rooms, and beside what is wanted. Nothing fails here: a figure that grows
is a reason to look.
"""

import ast
import io
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).resolve().parents[1]
TOPS: Final = ("data", "models", "trainer", "launch")
ROOT_FILES: Final = ("__init__.py", "__main__.py")
BEFORE: Final = {"data": 7109, "models": 1941, "trainer": 8532, "launch": 1798, "product": 19501, "tests": 24009}
LONG_FUNCTION, LONG_FILE = 20, 300
VAGUE: Final = frozenset({"found", "place", "part", "some", "given", "said", "told"})
NO_CODE: Final = frozenset(
    {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
)

Function = ast.FunctionDef | ast.AsyncFunctionDef


def count_code_lines(text: str, tree: ast.Module) -> int:
    """Count the lines that hold code: no blank lines, comments or docstrings."""
    documentation: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            documentation |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))

    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NO_CODE:
            code |= set(range(token.start[0], token.end[0] + 1))
    return len(code - documentation)


def functions_of(tree: ast.Module) -> Iterator[Function]:
    """Give every function and method, nested ones too."""
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def body_lines(function: Function, lines: list[str]) -> list[str]:
    """Give the lines of a function's body without its docstring."""
    first = function.body[0]
    has_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    if has_docstring and len(function.body) > 1:
        first = function.body[1]
    return lines[first.lineno - 1 : function.end_lineno]


def vague_names(function: Function) -> set[str]:
    """List the vague names that a function gives to something."""
    return {
        node.id
        for node in ast.walk(function)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id in VAGUE
    }


def product_files() -> list[Path]:
    """List the files of the package."""
    rooms = [path for top in TOPS for path in sorted((REPOSITORY / top).rglob("*.py"))]
    return [REPOSITORY / name for name in ROOT_FILES if (REPOSITORY / name).is_file()] + rooms


def report() -> str:
    """Write all figures, one a line."""
    code: Counter[str] = Counter()
    modules: Counter[str] = Counter()
    long_files: list[str] = []
    comments = skips = long_functions = dense_functions = vague_functions = 0

    for path in product_files():
        text = path.read_text(encoding="utf-8")
        lines, tree = text.split("\n"), ast.parse(text)
        name = path.relative_to(REPOSITORY).as_posix()
        num_code = count_code_lines(text, tree)
        code[name.partition("/")[0] if "/" in name else "root"] += num_code
        code["product"] += num_code
        comments += sum(line.lstrip().startswith("#") for line in lines)
        skips += text.count("fmt: skip")
        if path.name != "__init__.py":
            modules[path.parent.relative_to(REPOSITORY).as_posix()] += 1
        if num_code > LONG_FILE:
            long_files.append(f"{name} {num_code}")
        for function in functions_of(tree):
            vague_functions += bool(vague_names(function))
            body = body_lines(function, lines)
            if len(body) >= LONG_FUNCTION:
                long_functions += 1
                dense_functions += all(line.strip() for line in body)

    for path in sorted((REPOSITORY / "tests").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        code["tests"] += count_code_lines(text, ast.parse(text))

    rows = [
        f"{name:<10}{count:>7} lines of code (before: {BEFORE.get(name, 0)})"
        for name, count in sorted(code.items(), key=lambda item: item[0] in ("product", "tests"))
    ]
    largest_room, largest = modules.most_common(1)[0]
    share = 100 * dense_functions / max(1, long_functions)
    rows += [
        f"largest room: {largest_room}, {largest} modules (before: 73; wanted: at most 14)",
        f"files of more than {LONG_FILE} lines of code: {', '.join(long_files) or 'none'} (wanted: none)",
        f"functions of {LONG_FUNCTION} lines and more without a blank line: {dense_functions} of {long_functions}, "
        f"{share:.0f}% (before: 194 of 227; wanted: below 20%)",
        f"comments a 100 lines of code: {100 * comments / code['product']:.1f} (before: 1.6; wanted: 4 to 8)",
        f"fmt: skip: {skips} (before: 80; wanted: 0)",
        f"functions with locals called {', '.join(sorted(VAGUE))}: {vague_functions} (before: 272; wanted: only where "
        "the word is the content)",
    ]
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    sys.stdout.write(report())
