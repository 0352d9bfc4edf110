"""The house: imports run one way, and the front door shows what it should."""

import ast
import importlib.util
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import vitfold
from vitfold import errors
from vitfold.data.sources import LIBRARIES

SOURCE = Path(vitfold.__file__).parent

ORDER = [
    "errors",
    "files",
    "tokens",
    "methods",
    "folding",
    "tools",
    "saving",
    "exporting",
    "data",
    "segment",
    "train",
    "lab",
    "serve",
    "cli",
    "__main__",
]
"""The rooms from the ground up; each may use those before it, and its own files."""

HEIGHT = {name: height for height, name in enumerate(ORDER)}

FACE = ""
"""The package itself, which hands names on."""

FILES = sorted(SOURCE.rglob("*.py"))


PACKAGES = [file.parent for file in FILES if file.name == "__init__.py"]


def exported(file: Path) -> set[str]:
    """What a package hands on from its modules, modules themselves aside."""
    body = ast.parse(file.read_text(encoding="utf-8")).body
    handed = [node for node in body if isinstance(node, ast.ImportFrom)]
    modules = {path.stem for path in file.parent.iterdir()}
    own = "vitfold." + ".".join(file.parent.relative_to(SOURCE).parts)
    return {
        name.asname or name.name
        for node in handed
        for name in node.names
        if not (node.module == own.rstrip(".") and name.name in modules)
    }


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def module_of(file: Path) -> str:
    parts = ["vitfold", *file.relative_to(SOURCE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(file: Path) -> set[str]:
    """Modules of vitfold that a file imports."""
    result = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            result |= set(names) if node.module == "vitfold" else {node.module}
        if isinstance(node, ast.Import):
            result |= {alias.name for alias in node.names}
    return {name for name in result if name.split(".")[0] == "vitfold"}


PENDING: set[tuple[str, str]] = set()


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_imports_run_one_way(file: Path) -> None:
    own = room(module_of(file))
    for name in imported(file):
        other = room(name)
        if own == FACE or other == own or (own, other) in PENDING:
            continue
        assert HEIGHT[other] < HEIGHT[own], f"{own} imports {other}"


def files_used(file: Path) -> set[str]:
    """The modules of vitfold that a file names, also for checkers of types alone."""
    result = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                result.add(whole if whole in MODULES else node.module)
        if isinstance(node, ast.Import):
            result |= {alias.name for alias in node.names}
    return result & MODULES


MODULES = {module_of(file) for file in FILES if file.name != "__init__.py"}


def test_no_files_lean_on_each_other() -> None:
    """None leads back to itself by what it imports."""
    uses = {module_of(file): files_used(file) for file in FILES if file.name != "__init__.py"}
    while ends := {name for name, others in uses.items() if not others & uses.keys()}:
        for name in ends:
            del uses[name]
    assert {name: others & uses.keys() for name, others in uses.items()} == {}


def test_every_room_has_its_place() -> None:
    assert {room(module_of(file)) for file in FILES} == {*ORDER, FACE}


def test_what_is_exported_is_there() -> None:
    missing = [name for name in vitfold.__all__ if not hasattr(vitfold, name)]
    assert missing == []
    ours = [m for m in vitfold.METHODS.values() if m.__module__.startswith("vitfold.")]
    methods = {method.__name__ for method in ours}
    raised = {
        n
        for n, e in vars(errors).items()
        if isinstance(e, type) and e.__module__ == errors.__name__
    }
    assert methods | raised <= set(vitfold.__all__)


def test_no_public_name_is_also_a_module() -> None:
    """`vitfold.validate` is a function whatever was imported before."""
    both = [n for n in vitfold.__all__ if importlib.util.find_spec(f"vitfold.{n}") is not None]
    assert both == []


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_no_name_of_a_package_is_also_a_module_beside_it(package: Path) -> None:
    """Whichever was imported last would be what the name means."""
    beside = {path.stem for path in package.iterdir() if path.suffix == ".py" or path.is_dir()}
    for file in package.glob("*.py"):
        names = {
            node.name
            for node in ast.parse(file.read_text(encoding="utf-8")).body
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
        }
        if file.stem == "__init__":
            names |= exported(file)
        assert names & (beside - {file.stem}) == set(), file.name


def test_what_the_code_imports_is_declared() -> None:
    """As a dependency, or by an extra."""
    packages = set(project()["dependencies"]).union(*project()["optional-dependencies"].values())
    names = {re.split(r"[\[>=]", package)[0] for package in packages}
    declared = {IMPORTED.get(name, name.replace("-", "_")) for name in names}
    own = {"vitfold", *sys.stdlib_module_names}
    for file in FILES:
        assert anywhere(file) - own <= declared, file.name


def test_links_of_the_readme_work_on_the_package_index() -> None:
    """Links are whole addresses, and those into the repository lead to what is there."""
    root = SOURCE.parents[1]
    text = (root / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert len(links) > 10
    for link in links:
        if link.startswith("#"):
            continue
        assert link.startswith("https://"), link
        ours = re.fullmatch(f"(?:{'|'.join(map(re.escape, PLACES))})([^#]+)(?:#.*)?", link)
        if ours is not None:
            assert (root / ours[1]).exists(), link
    assert set(project()["urls"]) >= {"Homepage", "Documentation", "Repository", "Changelog"}


PLACES = (
    "https://github.com/vitfold/vitfold/blob/main/",
    "https://raw.githubusercontent.com/vitfold/vitfold/main/",
)
"""Where files of the repository are."""


def test_the_core_needs_no_extra() -> None:
    """Optional dependencies are imported where they are used, not when vitfold is."""
    optional = {package for needed in extras().values() for package in needed}
    for file in FILES:
        assert not roots(file) & optional, file.name


def test_what_is_missing_is_said_with_the_extra_that_brings_it() -> None:
    message = [
        tuple(part.value for part in node.args if isinstance(part, ast.Constant))
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "missing"
    ]
    message = [pair for pair in message if len(pair) == 2]
    assert len(message) > 3
    message += [(package, "data") for package in LIBRARIES.values() if package]
    for package, extra in message:
        assert IMPORTED.get(package, package) in extras()[extra], package


IMPORTED = {
    "scikit-learn": "sklearn",
    "pytorch-optimizer": "pytorch_optimizer",
    "curvlinops-for-pytorch": "curvlinops",
    "pillow": "PIL",
}
"""What packages are called when they are imported, where that is another name."""


def project() -> dict[str, Any]:
    """What pyproject.toml says of the package."""
    text = (SOURCE.parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    return dict(tomllib.loads(text)["project"])


def extras() -> dict[str, set[str]]:
    """What every extra brings, as it is imported."""
    result = {
        extra: {re.split(r"[\[>=]", package)[0] for package in packages}
        for extra, packages in project()["optional-dependencies"].items()
    }
    return {
        extra: {IMPORTED.get(n, n) for n in names} - {"vitfold"} for extra, names in result.items()
    }


def anywhere(file: Path) -> set[str]:
    """The packages that a file imports, also when something in it runs."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return {name.split(".")[0] for name in names}


def roots(file: Path) -> set[str]:
    """The packages that a file imports when it is imported."""
    names: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return {name.split(".")[0] for name in names}
