"""What every law needs: the files of a house and the imports in them."""

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path


ROOT = Path(__file__).resolve().parents[2]
SKIPPED_FOLDERS = {".git", ".venv", "outputs", "shared", "build", "__pycache__"}


def list_files(root: Path, *suffixes: str) -> list[Path]:
    """Files of the house, relative to `root`, sorted: what git tracks or would add, else all that lies there."""
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "ls-files", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
        paths = [Path(name) for name in names if (root / name).is_file()]
    else:
        found = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
        paths = [path for path in found if not SKIPPED_FOLDERS.intersection(path.parts)]
    return sorted(path for path in paths if not suffixes or path.suffix in suffixes)


def list_shipped(root: Path) -> list[Path]:
    """Files that travel with the weights, relative to `root`."""
    return [path for path in list_files(root, ".py") if path.parent == Path() and path.stem.endswith("_ross3d")]


def parse(root: Path, path: Path) -> ast.Module:
    return ast.parse((root / path).read_text(encoding="utf-8"), filename=str(path))


def get_module_name(path: Path) -> str:
    """`data/scene.py` -> `data.scene`; `data/__init__.py` -> `data`."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def get_own_names(root: Path) -> set[str]:
    """Modules and packages of the house, dotted, without the leading `ross3d.`."""
    names = {get_module_name(path) for path in list_files(root, ".py")}
    for name in list(names):
        parts = name.split(".")
        names |= {".".join(parts[:end]) for end in range(1, len(parts))}
    return names - {""}


def resolve_own(name: str, attribute: str, own: set[str]) -> str:
    """The module meant by `from name import attribute`: the submodule where there is one."""
    longer = f"{name}.{attribute}" if name else attribute
    return longer if longer in own else name


def list_own_imports(root: Path, path: Path) -> Iterator[tuple[int, str, str]]:
    """(line, module of ours without `ross3d.`, "relative" | "absolute" | "bare") for every import of ours in a file.

    `bare` is `import data.scene`: it works only while the checkout itself is on the path. Modules named in a call of
    `import_module` count as well, as far as their name is written out.
    """
    own = get_own_names(root)
    package = [part for part in get_module_name(path.parent / "__init__.py").split(".") if part]
    for node in ast.walk(parse(root, path)):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = ".".join([*package[: len(package) - (node.level - 1)], *filter(None, [node.module])])
            for alias in node.names:
                yield node.lineno, resolve_own(base, alias.name, own), "relative"
        elif isinstance(node, ast.ImportFrom):
            name, is_ours = (node.module, False) if node.module != "ross3d" else ("", True)
            if node.module.startswith("ross3d."):
                name, is_ours = node.module.removeprefix("ross3d."), True
            if is_ours or name.split(".")[0] in own:
                for alias in node.names:
                    yield node.lineno, resolve_own(name, alias.name, own), "absolute" if is_ours else "bare"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("ross3d."):
                    yield node.lineno, alias.name.removeprefix("ross3d."), "absolute"
                elif alias.name.split(".")[0] in own:
                    yield node.lineno, alias.name, "bare"
        elif isinstance(node, ast.Call) and node.args:
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            text = get_leading_text(node.args[0])
            if function in ("import_module", "__import__") and text.startswith("ross3d."):
                yield node.lineno, text.removeprefix("ross3d.").rstrip("."), "absolute"


def get_leading_text(node: ast.expr) -> str:
    """The text of a literal, or what an f-string begins with."""
    if isinstance(node, ast.JoinedStr) and node.values:
        node = node.values[0]
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def write_house(root: Path, files: dict[str, str]) -> Path:
    """A small house in a temporary folder, for showing that a law finds what it forbids."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root
