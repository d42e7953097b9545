"""The copy of a run's code: what is in it, what is not, and that it stays what it was."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dist_trainer.errors import UsageError
from dist_trainer.slurm import code_files
from dist_trainer.slurm.code_files import CodeFiles, find_code
from dist_trainer.slurm.code_snapshot import Snapshot, plan_snapshot, remove_snapshot, write_snapshot
from dist_trainer.slurm.submission_words import shown_size


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
    identity += ["-c", "protocol.file.allow=always"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def put(path: Path, text: str = "x = 1\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with a package, an ignored file and one commit."""
    top = tmp_path / "repository"
    top.mkdir()
    git(top, "init", "-q")
    put(top / "net.py")
    put(top / "package" / "__init__.py", "")
    put(top / "package" / "model.py")
    put(top / ".gitignore", "ignored.py\nruns/\n_version.py\n")
    put(top / "ignored.py")
    git(top, "add", "-A")
    git(top, "commit", "-qm", "first")
    return top


def find(folder: Path, **options: Any) -> CodeFiles:
    return find_code(folder, **{"runs": folder / "runs", **options})


def copied(code: CodeFiles, run: Path) -> Snapshot:
    snapshot = plan_snapshot(run, code)
    write_snapshot(snapshot)
    return snapshot


def names(top: Path) -> set[str]:
    return {str(path.relative_to(top)) for path in top.rglob("*") if path.is_symlink() or path.is_file()}


TRACKED = {".gitignore", "net.py", "package/__init__.py", "package/model.py"}


def test_tracked_and_new_files_are_copied_as_they_are_now(repository: Path, tmp_path: Path) -> None:
    put(repository / "net.py", "x = 2\n")
    put(repository / "new.py", "y = 1\n")
    (repository / "package" / "model.py").unlink()
    snapshot = copied(find(repository), tmp_path / "run")
    assert names(snapshot.path) == TRACKED - {"package/model.py"} | {"new.py"}
    assert (snapshot.path / "net.py").read_text() == "x = 2\n"


def test_commit_and_difference_are_recorded(repository: Path, tmp_path: Path) -> None:
    put(repository / "net.py", "x = 2\n")
    snapshot = copied(find(repository), tmp_path / "run")
    recorded = json.loads((tmp_path / "run" / "code" / "0001.json").read_text())
    assert len(recorded["commit"]) == 40
    assert (recorded["dirty"], recorded["files"]) == (True, 4)
    assert recorded["bytes"] == sum((snapshot.path / name).stat().st_size for name in TRACKED)
    difference = (tmp_path / "run" / "code" / "0001.diff").read_text()
    assert "-x = 1" in difference and "+x = 2" in difference


def test_new_files_are_named_and_part_of_the_difference(repository: Path, tmp_path: Path) -> None:
    put(repository / "net.py", "x = 2\n")
    texts = {"new.py": "y = 1\nz = 2\n", "a b.txt": "no end", "package/empty.py": "", "dos.py": "a\r\nb\rc\n"}
    for name, text in texts.items():
        (repository / name).write_bytes(text.encode())
    put(repository / "go.sh", "exit\n").chmod(0o755)
    put(repository / "large.txt", "x" * 200_000)
    (repository / "picture.png").write_bytes(b"\x89PNG\0")
    (repository / "alias.py").symlink_to("net.py")
    snapshot = copied(find(repository), tmp_path / "run")
    recorded = json.loads(snapshot.path.with_suffix(".json").read_text())
    assert recorded["dirty"] is True
    left_out = {"large.txt", "picture.png", "alias.py"}
    assert recorded["new"] == sorted({*texts, "go.sh", *left_out})
    git(tmp_path, "clone", "-q", str(repository), "again")
    git(tmp_path / "again", "apply", str(snapshot.path.with_suffix(".diff")))
    again = {name for name in names(tmp_path / "again") if not name.startswith(".git/")}
    assert again == names(snapshot.path) - left_out
    for name in again:
        assert (tmp_path / "again" / name).read_bytes() == (snapshot.path / name).read_bytes()
    assert os.access(tmp_path / "again" / "go.sh", os.X_OK)


def test_new_files_alone_make_a_copy_another_than_the_commit(repository: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    clean = json.loads(copied(find(repository), run).path.with_suffix(".json").read_text())
    assert (clean["dirty"], clean["new"]) == (False, [])
    put(repository / "new.py")
    dirty = json.loads(copied(find(repository), run).path.with_suffix(".json").read_text())
    assert (dirty["dirty"], dirty["new"]) == (True, ["new.py"])


def test_a_repository_without_a_commit_is_copied_too(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    put(tmp_path / "net.py")
    snapshot = copied(find(tmp_path), tmp_path / "runs" / "run")
    assert names(snapshot.path) == {"net.py"}
    assert json.loads(snapshot.path.with_suffix(".json").read_text())["commit"] is None


def test_the_copy_is_for_its_owner_only_and_scripts_stay_scripts(repository: Path, tmp_path: Path) -> None:
    put(repository / "go.sh").chmod(0o755)
    snapshot = copied(find(repository), tmp_path / "run")
    for path in snapshot.path.parent.rglob("*"):
        inside = path.is_relative_to(snapshot.path)
        wanted = 0o700 if path.is_dir() or path.name == "go.sh" else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == wanted or not inside
    assert stat.S_IMODE(snapshot.path.parent.stat().st_mode) == 0o700


def test_runs_caches_and_run_folders_are_no_code(repository: Path, tmp_path: Path) -> None:
    (repository / ".gitignore").write_text("")
    put(repository / "runs" / "a" / "config.yaml")
    put(repository / "elsewhere" / "b" / "run.json")
    put(repository / "elsewhere" / "b" / "fence" / "0001.json")
    put(repository / "package" / "__pycache__" / "model.pyc")
    put(repository / ".venv" / "lib" / "x.py")
    put(repository / "mlflow.db")
    put(repository / "slurm-4711.out")
    put(repository / "env" / "pyvenv.cfg")
    put(repository / "env" / "lib" / "x.py")
    put(repository / "conda" / "conda-meta" / "history")
    put(repository / "conda" / "lib" / "x.py")
    assert set(find(repository).files) == TRACKED | {"ignored.py"}


def test_a_large_new_file_is_left_out_and_named(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_files, "MAX_NEW_BYTES", 1000)
    put(repository / "data.csv", "x" * 2000)
    put(repository / "net.py", "#" * 2000)
    code = find(repository)
    assert set(code.files) == TRACKED
    assert code.left_out == ["data.csv (0 MB, not in git)"]


def test_a_working_folder_inside_a_repository_is_at_its_place_in_the_copy(
    repository: Path, tmp_path: Path
) -> None:
    put(repository / "experiments" / "one" / "train_me.py")
    snapshot = copied(find(repository / "experiments" / "one"), tmp_path / "run")
    assert names(snapshot.path) == TRACKED | {"experiments/one/train_me.py"}
    assert snapshot.places.folder == snapshot.path / "experiments" / "one"


def test_folders_that_modules_came_from_are_imported_from_in_the_copy(
    repository: Path, tmp_path: Path
) -> None:
    put(repository / "src" / "thing" / "__init__.py")
    put(repository / "src" / "thing" / "part.py")
    modules = [
        ("thing", repository / "src" / "thing" / "__init__.py"),
        ("thing.part", repository / "src" / "thing" / "part.py"),
        ("net", repository / "net.py"),
    ]
    snapshot = copied(find(repository / "package", modules=modules), tmp_path / "run")
    assert snapshot.places.folder == snapshot.path / "package"
    assert snapshot.places.path == [snapshot.path / "src", snapshot.path]


def test_an_ignored_file_that_is_imported_belongs_to_the_code(repository: Path) -> None:
    version = put(repository / "package" / "_version.py")
    assert "package/_version.py" not in find(repository).files
    assert "package/_version.py" in find(repository, modules=[("package._version", version)]).files


def test_code_from_another_place_is_named(repository: Path, tmp_path: Path) -> None:
    other = put(tmp_path / "other" / "lib" / "__init__.py")
    code = find(repository, modules=[("lib", other)])
    assert code.left_out == [f"{tmp_path}/other/lib (imported from outside {repository})"]


def test_a_link_stays_one_inside_is_a_copy_of_a_file_outside_and_a_folder_outside_is_left_out(
    repository: Path, tmp_path: Path
) -> None:
    put(tmp_path / "outside" / "secret.py", "far = 1\n")
    (repository / "alias.py").symlink_to("net.py")
    (repository / "absolute.py").symlink_to(repository / "package" / "model.py")
    (repository / "again").symlink_to("package")
    (repository / "chain.py").symlink_to("alias.py")
    (repository / "far.py").symlink_to(tmp_path / "outside" / "secret.py")
    (repository / "data").symlink_to(tmp_path / "outside")
    (repository / "nowhere").symlink_to("gone")
    (repository / "loop").symlink_to("loop")
    code = find(repository)
    snapshot = copied(code, tmp_path / "run")
    links = {name: str((snapshot.path / name).readlink()) for name in code.links}
    assert links == {
        "alias.py": "net.py",
        "absolute.py": "package/model.py",
        "again": "package",
        "chain.py": "net.py",
    }
    assert (snapshot.path / "far.py").read_text() == "far = 1\n"
    assert not (snapshot.path / "far.py").is_symlink()
    assert code.left_out == [f"data (a link to {tmp_path}/outside)"]
    for path in snapshot.path.rglob("*"):
        assert path.resolve().is_relative_to(snapshot.path)


@pytest.mark.parametrize("with_git", [True, False], ids=["git", "no git"])
def test_a_new_link_is_no_way_around_the_names_of_secrets(
    with_git: bool, repository: Path, tmp_path: Path
) -> None:
    top = repository if with_git else put(tmp_path / "plain" / "net.py").parent
    secret = put(tmp_path / "home" / "prod", "hunter2\n")
    named = put(tmp_path / "home" / "credentials.json", "hunter2\n")
    (top / ".env").symlink_to(secret)
    (top / "credentials.json").symlink_to(secret)
    (top / "settings.json").symlink_to(named)
    (top / "chain.json").symlink_to(".env")
    (top / "alias.py").symlink_to("net.py")
    code = find(top)
    snapshot = copied(code, tmp_path / "run")
    lost = {line.split()[0] for line in code.left_out}
    # without git a name like .env is not looked at in the first place
    assert lost == {"credentials.json", "settings.json", "chain.json"} | ({".env"} if with_git else set())
    assert f"settings.json (a link to {named}, by a name it holds secrets)" in code.left_out
    assert (snapshot.path / "alias.py").is_symlink()
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert files and not [path for path in files if b"hunter2" in path.read_bytes()]


def test_a_repository_inside_the_repository_is_copied_with_it(repository: Path, tmp_path: Path) -> None:
    library = tmp_path / "library"
    library.mkdir()
    git(library, "init", "-q")
    put(library / "lib.py")
    git(library, "add", "-A")
    git(library, "commit", "-qm", "first")
    git(repository, "submodule", "add", "-q", str(library), "vendored")
    put(repository / "vendored" / "new.py")
    git(tmp_path, "clone", "-q", str(library), str(repository / "cloned"))
    assert {"vendored/lib.py", "vendored/new.py", "cloned/lib.py"} < set(find(repository).files)


def test_names_that_are_odd_are_copied(repository: Path, tmp_path: Path) -> None:
    odd = [" spaced name.py", "quo'te\".py", "$(touch canary).py", "new\nline.py", "ünï.py", "-n.py"]
    for name in odd:
        put(repository / name)
    raw = os.fsencode(repository) + b"/not-\xff-text.py"
    Path(os.fsdecode(raw)).write_text("")
    snapshot = copied(find(repository), tmp_path / "run")
    assert names(snapshot.path) == TRACKED | {*odd, os.fsdecode(b"not-\xff-text.py")}


def test_the_same_code_is_copied_once(repository: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = copied(find(repository), run)
    again = copied(find(repository), run)
    assert (first.name, again.name, again.is_there) == ("code/0001", "code/0001", True)
    put(repository / "net.py", "x = 3\n")
    assert copied(find(repository), run).name == "code/0002"
    put(repository / "net.py", "x = 1\n")
    assert copied(find(repository), run).name == "code/0003", "only the last one is looked at"


def test_a_copy_that_was_changed_is_not_used_again(repository: Path, tmp_path: Path) -> None:
    first = copied(find(repository), tmp_path / "run")
    put(first.path / "package" / "__pycache__" / "model.pyc")  # what Python puts there is no change
    assert plan_snapshot(tmp_path / "run", find(repository)).is_there
    put(first.path / "net.py", "x = 'other'\n")
    assert plan_snapshot(tmp_path / "run", find(repository)).name == "code/0002"


def test_what_a_killed_submission_left_is_written_over(repository: Path, tmp_path: Path) -> None:
    put(tmp_path / "run" / "code" / "0001" / "half.py")
    snapshot = copied(find(repository), tmp_path / "run")
    assert snapshot.name == "code/0001"
    assert names(snapshot.path) == TRACKED


def test_a_copy_is_taken_back_whole(repository: Path, tmp_path: Path) -> None:
    first = copied(find(repository), tmp_path / "run")
    put(repository / "net.py", "x = 3\n")
    second = copied(find(repository), tmp_path / "run")
    remove_snapshot(second)
    assert sorted(path.name for path in (tmp_path / "run" / "code").iterdir()) == [
        "0001",
        "0001.diff",
        "0001.json",
    ]
    remove_snapshot(plan_snapshot(tmp_path / "run", first.code))


def test_without_git_what_looks_like_source_is_copied(tmp_path: Path) -> None:
    top = tmp_path / "project"
    for name in ("net.py", "configs/a.yaml", ".hidden/x.py", "venv/pyvenv.cfg", "venv/x.py", "runs/a/b.py"):
        put(top / name)
    for name in ("data/picture.png", "env/pyvenv.cfg", "env/y.py", "old/run.json", "old/fence/0001.json"):
        put(top / name)
    code = find(top)
    assert set(code.files) == {"net.py", "configs/a.yaml"}
    assert copied(code, tmp_path / "run").places.folder == tmp_path / "run" / "code" / "0001"


@pytest.mark.parametrize(("limit", "value"), [("MAX_WALKED_FILES", 2), ("MAX_WALKED_BYTES", 10)])
def test_too_much_without_git_is_refused_with_what_to_do(
    limit: str, value: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        put(tmp_path / f"{number}.py")
    monkeypatch.setattr(code_files, limit, value)
    with pytest.raises(UsageError, match="put the code under git, or submit with --no-snapshot"):
        find(tmp_path)


def test_too_large_a_repository_is_refused_with_what_to_do(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code_files, "MAX_FILES", 3)
    with pytest.raises(
        UsageError, match=r"is 4 files .* have git ignore what is no code, or .*--no-snapshot"
    ):
        find(repository)


def test_a_project_that_a_repository_further_up_ignores_is_copied_by_itself(repository: Path) -> None:
    put(repository / ".gitignore", "project/\n")
    put(repository / "project" / "mine.py")
    code = find(repository / "project")
    assert set(code.files) == {"mine.py"} and code.working_folder == "."


def test_a_repository_that_git_refuses_is_no_project_without_git(
    repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put(
        tmp_path / "bin" / "git", "#!/bin/sh\necho 'fatal: detected dubious ownership' >&2; exit 128\n"
    ).chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(UsageError, match="dubious ownership"):
        find(repository)


def test_without_the_command_git_the_source_is_copied(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert set(find(repository).files) == {"net.py", "ignored.py", "package/__init__.py", "package/model.py"}


def test_a_file_that_vanishes_is_named(repository: Path, tmp_path: Path) -> None:
    code = find(repository)
    (repository / "net.py").unlink()
    with pytest.raises(UsageError, match=r"net\.py: no such file or directory; .*--no-snapshot"):
        copied(code, tmp_path / "run")


def test_a_job_imports_the_copy(repository: Path, tmp_path: Path) -> None:
    put(repository / "net.py", "print('as submitted')\n")
    places = copied(find(repository), tmp_path / "run").places
    put(repository / "net.py", "print('changed')\n")
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": str(places.folder)}
    command = [sys.executable, "-c", "import net, package.model"]
    done = subprocess.run(
        command, cwd=repository, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "as submitted\n"


def test_sizes_are_told_in_units_that_show_them() -> None:
    sizes = [shown_size(count) for count in (0, 999, 14_200, 999_499, 999_500, 3_210_000)]
    assert sizes == ["0 bytes", "999 bytes", "14 kB", "999 kB", "1.0 MB", "3.2 MB"]
