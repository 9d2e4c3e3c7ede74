"""How much a newcomer must read: the lines behind a GPT run.

    python -m experiments.readability

Counts the project's own files that one training run of configs/nlp/gpt.py:tiny really imports (the
interpreter's list, so nothing found by name is missed), as lines of the file and as lines of code
(without blank lines, comments and docstrings).
"""

import ast
import io
import subprocess
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RUN = """
import sys, tempfile
from research import config, train
train.train(config.load("configs/nlp/gpt.py:tiny", ["config.steps=6", "config.eval.batch=512",
    "config.eval.every=6", "config.log.tensorboard=False"]), tempfile.mkdtemp())
print("\\n".join(m.__file__ for m in list(sys.modules.values()) if getattr(m, "__file__", None)))
"""


def closure() -> list[Path]:
    """Returns the files of the project that a GPT run imports, and its config file."""
    output = subprocess.run(
        [sys.executable, "-c", RUN], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    imported = {Path(line) for line in output.splitlines() if line.endswith(".py")}
    folders = [ROOT / "research", ROOT / "configs"]
    own = {path for path in imported if any(folder in path.parents for folder in folders)}
    return sorted(own | {ROOT / "configs/nlp/gpt.py"})


def lines(path: Path) -> int:
    """Returns the lines of a file."""
    return len(path.read_text().splitlines())


def code_lines(path: Path) -> int:
    """Returns the lines that hold code: no blank lines, comments or docstrings."""
    text = path.read_text()
    held: set[int] = set()
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in skipped and token.type != tokenize.ENDMARKER:
            held.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node
        ):
            docstring = node.body[0]
            held -= set(range(docstring.lineno, docstring.end_lineno + 1))
    return len(held)


def main() -> None:
    """Prints the count of each file and the sums."""
    files = closure()
    for path in files:
        print(f"{lines(path):5} {code_lines(path):5}  {path.relative_to(ROOT)}")
    print(f"{sum(map(lines, files)):5} {sum(map(code_lines, files)):5}  lines and lines of code")
    loop = [ROOT / "research/train.py", ROOT / "research/step.py"]
    print(f"{sum(map(lines, loop)):5} {sum(map(code_lines, loop)):5}  train.py and step.py")


if __name__ == "__main__":
    main()
