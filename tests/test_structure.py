"""The shape of the code: who may import whom, where flax may appear, how long files are."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Files of one level do not import each other, but for the orders named here.
LEVELS = {
    "arguments": 0, "storage": 0, "gcs": 1, "lookup": 0, "tree": 0, "config": 0,
    "contradictions": 0,
    "kernels": 1, "sharding": 1, "metrics": 1, "utilisation": 1, "flops": 1, "checkpoint": 1,
    "workdir": 1, "hosts": 1, "checksum": 1, "manifest": 1, "signing": 1, "watchdog": 1, "guard": 1,
    "compilation_cache": 1, "saver": 2, "log": 4, "lock": 1, "signals": 1, "resume": 4, "verify": 4,
    "models": 2, "tasks": 2, "data": 2, "gradients": 2, "optim": 2, "decode": 2,
    "tensor_files": 1, "interop": 2, "init_from": 4, "export": 5, "review": 5,
    "step": 3, "build": 3, "answers": 3, "evaluate": 4, "generate": 4, "pictures": 4,
    "train": 5, "recipes": 6, "__main__": 7,
}  # fmt: skip
ALLOWED = {
    ("lookup", "arguments"), ("config", "arguments"), ("config", "lookup"),
    ("config", "contradictions"), ("contradictions", "arguments"), ("build", "step"),
    ("generate", "evaluate"), ("evaluate", "pictures"),
    ("checkpoint", "hosts"), ("checkpoint", "manifest"),
    ("checkpoint", "signing"), ("checkpoint", "checksum"), ("signals", "hosts"), ("lock", "hosts"),
    ("storage", "arguments"), ("tree", "arguments"),
}  # fmt: skip
FILES = sorted((ROOT / "research").rglob("*.py"))


def name_of(path: Path) -> str:
    """The folder or file below research/ that a file belongs to."""
    return path.relative_to(ROOT / "research").parts[0].removesuffix(".py")


def imports(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_imports_lower_levels_only(path):
    own = name_of(path)
    if own == "__init__":
        return
    for module in imports(path):
        parts = module.split(".")
        if parts[0] in ("configs", "experiments", "tests", "launch"):
            raise AssertionError(f"{path} imports {module}")
        if parts[0] != "research" or len(parts) < 2 or parts[1] == own:
            continue
        other = parts[1]
        lower = LEVELS[other] < LEVELS[own] or (own, other) in ALLOWED
        assert lower, f"{own} (level {LEVELS[own]}) imports {other} (level {LEVELS[other]})"


def test_flax_appears_in_models_only():
    users = {name_of(p) for p in FILES if any(m.split(".")[0] == "flax" for m in imports(p))}
    assert users == {"models"}


def test_configs_import_nothing_but_configs():
    for path in (ROOT / "configs").rglob("*.py"):
        for module in imports(path):
            assert module.split(".")[0] in ("configs", "ml_collections", "typing"), (
                f"{path}: {module}"
            )


def test_the_loop_and_the_step_are_at_most_350_lines():
    count = sum(
        len((ROOT / "research" / f).read_text().splitlines()) for f in ("train.py", "step.py")
    )
    assert count <= 350


def test_every_file_and_public_function_is_documented_and_typed():
    for path in FILES:
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), path
        public = [n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
        for node in public:
            if node.name.startswith("_"):
                continue
            assert ast.get_docstring(node), f"{path}: {node.name} has no docstring"
            if isinstance(node, ast.FunctionDef):
                arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
                missing = [a.arg for a in arguments if a.annotation is None]
                assert not missing, f"{path}: {node.name} leaves {missing} untyped"


def test_no_file_is_a_drawer():
    for path in FILES:
        assert path.name not in ("utils.py", "helpers.py", "common.py", "misc.py")
        assert len(path.read_text().splitlines()) <= 400, path
