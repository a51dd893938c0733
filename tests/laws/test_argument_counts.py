"""Law: no function takes more than ten arguments, except what the library calls with tensors or settings by name."""

import ast
from pathlib import Path

import pytest

from ross3d.tests.laws.house import ROOT, list_files, parse, write_house


MAX_ARGUMENTS = 10


def count_arguments(function: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> int:
    """Named arguments, without `self` and `cls`; `*args` and `**kwargs` are none."""
    arguments = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
    names = [argument.arg for argument in arguments]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def is_free(path: Path, name: str) -> bool:
    """Whether a function has the arguments that Transformers gives it: a tensor, an input or a saved setting each."""
    is_shipped = path.parent == Path() and path.stem.endswith("_ross3d")
    is_of_processor = name in ("__init__", "__call__") and path.stem == "processing_ross3d"
    return is_shipped and (name == "forward" or is_of_processor)


def find_violations(root: Path) -> list[str]:
    violations = []
    for path in list_files(root, ".py"):
        if path.parts[0] == "tests":
            continue
        for node in ast.walk(parse(root, path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                name, count = getattr(node, "name", "lambda"), count_arguments(node)
                if count > MAX_ARGUMENTS and not is_free(path, name):
                    violations.append(
                        f"{path}:{node.lineno}: {name} takes {count} arguments, at most {MAX_ARGUMENTS}; give those"
                        " that belong together as one value"
                    )
    return violations


def test_no_function_takes_too_many_arguments():
    violations = find_violations(ROOT)
    assert not violations, "\n".join(violations)


def write_function(name: str, count: int, before: str = "", after: str = "") -> str:
    names = ", ".join([*filter(None, [before]), *(f"a{index}" for index in range(count)), *filter(None, [after])])
    return f"def {name}({names}):\n    pass\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("data/scene.py", write_function("make", 10)),
        ("data/scene.py", write_function("make", 10, after="*args, **kwargs")),
        ("data/scene.py", "class Rows:\n    " + write_function("__init__", 10, "self").replace("\n", "\n    ")),
        ("modeling_ross3d.py", write_function("forward", 30)),
        ("processing_ross3d.py", write_function("__call__", 14)),
        ("processing_ross3d.py", write_function("__init__", 14)),
        ("tests/test_scene.py", write_function("make", 11)),
    ],
)
def test_ten_arguments_and_calls_of_the_library_pass(tmp_path, name, text):
    assert find_violations(write_house(tmp_path, {name: text})) == []


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("data/scene.py", write_function("make", 11), "data/scene.py:1: make takes 11 arguments"),
        ("data/scene.py", write_function("make", 10, after="*, seed"), "make takes 11 arguments"),
        ("data/scene.py", f"read = lambda {', '.join('abcdefghijkl')}: a\n", "lambda takes 12 arguments"),
        ("tools/ask.py", write_function("forward", 11), "forward takes 11 arguments"),
        ("modeling_ross3d.py", write_function("__call__", 11), "__call__ takes 11 arguments"),
        ("modeling_ross3d.py", write_function("__init__", 11), "__init__ takes 11 arguments"),
        ("data/scene.py", "async " + write_function("make", 13, "self"), "make takes 13 arguments"),
    ],
)
def test_more_arguments_are_found(tmp_path, name, text, found):
    (violation,) = find_violations(write_house(tmp_path, {name: text}))
    assert found in violation
