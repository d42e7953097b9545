"""The shape of the package: layers, one owner for each outside library, nothing unpickled, small parts.

All of it is read from the source, so imports inside functions count too.
"""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "dist_trainer"
MODULES = sorted(PACKAGE.rglob("*.py"))

LAYERS = [  # a module imports from its own part and from lines below
    {"cli"},
    {"tuning"},
    {"export", "planning"},
    {"new_project", "report"},
    {"diagnose", "doctor"},
    {"sweeps"},
    {"jobs"},
    {"slurm"},
    {"launchers", "inspect_run", "pack_data", "trials"},
    {"inference"},
    {"worker"},
    {"training"},
    {"checkpoint", "tracking"},
    {"data", "models", "shown_samples"},
    {"sweep_folder"},
    {"inference_request", "run_folder"},
    {"trained_code"},
    {"run_records"},
    {"adapters"},
    {"config"},
    {"errors", "spans"},
]
OWNERS = {
    "fsspec": {"adapters/storage.py"},
    "mlflow": {"tracking/mlflow_sync.py", "tracking/mlflow_registry.py"},
    "submitit": {"slurm/script.py"},
    "torch.distributed.elastic": {"launchers/agent.py"},
    "torch.distributed": {"adapters/distributed.py", "adapters/all_reduce_times.py", "launchers/agent.py"},
    "typer": {
        "cli/__init__.py",
        "cli/words.py",
        "cli/completion.py",
        "cli/training.py",
        "cli/looking.py",
        "cli/jobs.py",
        "cli/submit.py",
        "cli/sweep.py",
        "cli/diagnosing.py",
        "cli/planning.py",
        "cli/starting.py",
        "cli/tuning.py",
        "cli/exporting.py",
        "cli/reporting.py",
    },
    "IPython": {"training/notebook.py"},
    "safetensors": {"export/conversion.py", "export/loading.py"},  # the format as everybody else reads it
    "psutil": {"tracking/system_metrics.py"},
    "xxhash": {"training/digests.py"},
    "jinja2": {"report/page.py"},
    "markupsafe": {"report/page.py"},
}
READ_THE_ENVIRONMENT = {
    "config/imports.py",  # where the copy of the code is that a job runs
    "config/references.py",  # what ${env:NAME} refers to
    "config/redact.py",  # which values are secret
    "adapters/allocator.py",  # what the user told the C library
    "adapters/interfaces.py",  # which network interface the user named
    "adapters/place.py",  # torchrun's variables
    "adapters/slurm_job.py",  # SLURM's variables in a job
    "doctor/mlflow_login.py",  # whom MLflow's client would log in as
    "launchers/forkserver.py",  # what workers start with
    "slurm/scheduler.py",  # to leave out what changes the output of squeue and sacct
    "launchers/preload.py",  # the agent's pid
    "launchers/workers.py",  # CUDA_VISIBLE_DEVICES, before torch is there
    "slurm/script.py",  # what a submitted job does not take over
    "tracking/mlflow_sync.py",  # the MLflow client's retries and time-outs, in its own process
}
PICKLES = {
    "pickle",
    "_pickle",
    "cPickle",
    "cloudpickle",
    "dill",
    "joblib",
    "shelve",
    "marshal",
    "runpy",
    "code",
    "pty",
}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "execfile", "__import__"}
FORBIDDEN_METHODS = {  # each of them unpickles or runs what it reads, or takes a name that somebody else may take
    *(
        ("yaml", name)
        for name in ("load", "load_all", "full_load", "full_load_all", "unsafe_load", "unsafe_load_all")
    ),
    *(("torch", name) for name in ("save", "load", "package", "hub", "compile_file")),
    *(
        ("torch.jit", "load"),
        ("torch.hub", "load"),
        ("os", "system"),
        ("os", "popen"),
        ("tempfile", "mktemp"),
    ),
    *(("subprocess", name) for name in ("getoutput", "getstatusoutput")),
    *(("*", name) for name in ("broadcast_object_list", "all_gather_object", "gather_object")),
    *(("*", name) for name in ("scatter_object_list", "send_object_list", "recv_object_list")),
    *(
        ("*", name)
        for name in ("read_pickle", "load_model", "load_checkpoint", "recv", "Unpickler", "as_unverified")
    ),
}
UNSAFE_LOADERS = {"Loader", "UnsafeLoader", "FullLoader", "CLoader", "CUnsafeLoader", "CFullLoader"}
# all that there is of these, each with what makes it safe: a part of the call, or of the reason
EXCEPTIONS = {
    (
        "checkpoint/weights.py",
        "torch.load",
    ): "weights_only=True",  # foreign .pt files: tensors and plain values alone
    # writes and reads nothing: a plain .pt is what others read with weights_only=True
    ("export/conversion.py", "torch.save"): "",
    # a program of ours, in the process that proves it: its bytes are those that we wrote a moment ago
    ("export/loading.py", "torch.jit.load"): "compared(",
    # an answer of a child that we forked ourselves, over a pipe that nobody else has: no file, and no network
    ("launchers/forkserver.py", "ours.recv"): "",
}
NAMES_MODULES = {  # where a module is imported by a name that is not written there
    "__init__.py",  # of ours
    "config/imports.py",  # the configuration's targets: a configuration is code
    "launchers/forkserver.py",  # the workers' entry, by our own launcher
    "launchers/preload.py",  # a list in the same file
}
VAGUE_NAMES = {"utils", "util", "common", "helpers", "helper", "base", "misc", "manager", "managers"}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything imported; `from a import b` gives a.b, which may be a module."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno}: a relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def layer(part: str) -> int:
    """The number of the line; a new part at the top of the package has to be put somewhere."""
    found = [number for number, parts in enumerate(LAYERS) if part in parts]
    assert found, f"{part} is in no layer of tests/test_architecture.py"
    return found[0]


def calls(path: Path) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree(path)) if isinstance(node, ast.Call))


def test_imports_go_down_only() -> None:
    wrong = []
    for path in MODULES:
        part = name_of(path).removesuffix(".py").split("/")[0]
        if part == "__init__":
            continue
        for line, name in imports(path):
            if not is_within(name, "dist_trainer") or name.count(".") == 0:
                continue
            other = name.split(".")[1]
            if other != part and layer(other) <= layer(part):
                wrong.append(f"{name_of(path)}:{line}: {part} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_nothing_imports_a_name_from_the_top_of_the_package() -> None:
    top = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    for path in MODULES:
        for line, name in imports(path):
            if is_within(name, "dist_trainer"):
                assert name.split(".")[1] in top, f"{name_of(path)}:{line}: {name}"


@pytest.mark.parametrize("library", OWNERS)
def test_an_outside_library_has_one_owner(library: str) -> None:
    users = {name_of(path) for path in MODULES for _, name in imports(path) if is_within(name, library)}
    assert users <= OWNERS[library], f"{library} belongs to {OWNERS[library]}"


def test_an_owner_imports_submitit_and_mlflow_where_it_needs_them_only() -> None:
    for path in MODULES:
        names = [
            alias.name for node in tree(path).body if isinstance(node, ast.Import) for alias in node.names
        ]
        names += [node.module or "" for node in tree(path).body if isinstance(node, ast.ImportFrom)]
        assert not any(is_within(name, "mlflow") or is_within(name, "submitit") for name in names), path


def test_ruff_bans_what_has_an_owner_while_it_is_typed() -> None:
    ruff = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
    banned = ruff["flake8-tidy-imports"]["banned-api"].keys()
    assert "TID" in ruff["select"]
    assert banned >= {"torch.distributed", "fsspec", "mlflow", "submitit"}
    owners = {owner for library in banned for owner in OWNERS[library]}
    ignored = {name for name, rules in ruff["per-file-ignores"].items() if "TID251" in rules}
    assert {name for name in ignored if name.startswith("dist_trainer")} == {
        f"dist_trainer/{owner}" for owner in owners
    }


def dangers(path: Path) -> Iterator[tuple[str, str]]:
    """Everything in a module that could run what it reads: (the name of it, the place as written)."""
    for line, name in imports(path):
        if name.split(".")[0] in PICKLES or ("yaml." in name and name.rpartition(".")[2] in UNSAFE_LOADERS):
            yield name, f"line {line}"
    for node in ast.walk(tree(path)):
        where = (
            f"line {getattr(node, 'lineno', 0)}: {ast.unparse(node)}" if isinstance(node, ast.expr) else ""
        )
        if isinstance(node, ast.Attribute):
            owner, name = ast.unparse(node.value), node.attr
            if {(owner, name), ("*", name)} & FORBIDDEN_METHODS or (
                owner == "yaml" and name in UNSAFE_LOADERS
            ):
                yield f"{owner}.{name}", where
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in FORBIDDEN_CALLS:
            yield node.id, where
        elif isinstance(node, ast.Call) and is_dangerous(path, node):
            yield "a call", where


def is_dangerous(path: Path, call: ast.Call) -> bool:
    """A shell, arrays of objects, or a forbidden thing by its name in a text."""
    called, words = ast.unparse(call.func), {word.arg: ast.unparse(word.value) for word in call.keywords}
    if words.get("shell", "False") != "False" or words.get("allow_pickle") == "True":
        return True
    if called in ("np.load", "numpy.load"):
        return words.get("allow_pickle") != "False"
    if called.endswith("import_module") and name_of(path) not in NAMES_MODULES:
        return not (
            isinstance(call.args[0], ast.Constant) and call.args[0].value.split(".")[0] not in PICKLES
        )
    if called == "getattr" and len(call.args) > 1 and isinstance(call.args[1], ast.Constant):
        return (
            any(call.args[1].value == name for _, name in FORBIDDEN_METHODS)
            or call.args[1].value in FORBIDDEN_CALLS
        )
    return False


def test_nothing_is_unpickled_or_executed_but_for_what_is_listed() -> None:
    found, wrong = set(), []
    for path in MODULES:
        for name, where in dangers(path):
            key = (name_of(path), name)
            if key in EXCEPTIONS:
                found.add(key)
            else:
                wrong.append(f"{name_of(path)}: {name}, {where}")
    assert not wrong, "\n".join(wrong)
    assert found == EXCEPTIONS.keys(), "what is not there any more is no exception"
    for (module, name), safe in EXCEPTIONS.items():
        called = [call for call in calls(PACKAGE / module) if ast.unparse(call.func) == name]
        assert called and all(safe in ast.unparse(call) for call in called)


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "import _pickle as p",
        "x = eval('1')",
        "run = exec",
        "yaml.load(text)",
        "yaml.compose(text, Loader=yaml.UnsafeLoader)",
        "from yaml import FullLoader",
        "read = yaml.unsafe_load",
        "torch.load(path)",
        "load = torch.load",
        "getattr(torch, 'load')(path)",
        "importlib.import_module('pickle')",
        "importlib.import_module(name)",
        "__import__('pickle')",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "numpy.load(path, allow_pickle=wanted)",
        "np.savez(path, allow_pickle=True)",
        "subprocess.run(text, shell=True)",
        "os.system(text)",
        "tempfile.mktemp()",
        "pipe.recv()",
        "mlflow.pyfunc.load_model(uri)",
        "dist.broadcast_object_list(objects)",
    ],
)
def test_the_check_sees(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    (tmp_path / "module.py").write_text(f"{line}\n")
    assert list(dangers(tmp_path / "module.py"))


def test_the_environment_is_read_by_its_owners_only() -> None:
    readers = {
        name_of(path)
        for path in MODULES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv", "putenv")
    }
    readers |= {name_of(path) for path in MODULES for _, name in imports(path) if name.startswith("os.env")}
    assert readers <= READ_THE_ENVIRONMENT


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_says_what_it_owns_and_stays_small(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 300
    assert ast.get_docstring(tree(path)), "it opens with a sentence on what it owns"
    parts = set(name_of(path).removesuffix(".py").replace("/", "_").split("_"))
    assert not parts & VAGUE_NAMES, "name it for what it does"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_functions_stay_small(path: Path) -> None:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            has_docstring = ast.get_docstring(node, clean=False) is not None
            docstring = (first.end_lineno or 0) - first.lineno + 1 if has_docstring else 0
            length = (node.end_lineno or 0) - node.lineno + 1 - docstring
            assert length <= 40, f"{node.name} has {length} lines"


def test_the_trainer_stays_small() -> None:
    (trainer,) = [
        node
        for node in ast.walk(tree(PACKAGE / "training" / "trainer.py"))
        if isinstance(node, ast.ClassDef) and node.name == "Trainer"
    ]
    assert (trainer.end_lineno or 0) - trainer.lineno + 1 < 250


@pytest.mark.parametrize("folder", ["launch", "slurm", "configs", "docs"])
def test_folders_beside_the_package_cannot_be_imported(folder: str) -> None:
    assert not list((ROOT / folder).rglob("__init__.py"))


HELP = """
import sys
from dist_trainer.cli import app
sys.argv = ["dist-trainer", *sys.argv[1:]]
try:
    app(prog_name="dist-trainer")
except SystemExit as end:
    assert not end.code, end.code
heavy = {"torch", "mlflow", "numpy", "fsspec", "submitit", "matplotlib", "torchvision"} & set(sys.modules)
print("heavy:", *sorted(heavy))
"""


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["config", "schema"]], ids=lambda words: " ".join(words)
)
def test_help_and_schema_import_nothing_heavy(arguments: list[str]) -> None:
    command = [sys.executable, "-W", "error", "-c", HELP, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].strip() == "heavy:"
