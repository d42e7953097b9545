"""Writes a new project: what is in it, where, and the commands that come next."""

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_trainer.config.editor_schema import json_schema
from dist_trainer.config.near import listed
from dist_trainer.config.yaml_rules import write_yaml
from dist_trainer.errors import UsageError
from dist_trainer.new_project.examples import Example
from dist_trainer.new_project.profile import cluster_profile

SCHEMA = "config.schema.json"
_EDITORS = f"# yaml-language-server: $schema={SCHEMA}\n"
_TEMPLATE = Path(__file__).parent / "template"
_CONFIG, _MODULE, _PROFILE = "train.yaml", "my_project.py", "slurm.yaml"
_IGNORED, _README = ".gitignore", "README.md"
_ABOUT = {
    _MODULE: "the model and the data set: put yours in their place",
    _PROFILE: "the cluster: what a job asks for",
    SCHEMA: "for editors, to complete and check the configuration",
    _IGNORED: "keeps runs and data out of git",
    _README: "the commands, to look up",
}


@dataclass(frozen=True)
class Project:
    """A new project: its files by name, and what is trained."""

    folder: Path
    files: Mapping[str, str]
    config: str
    run: str
    prepares: tuple[str, ...] = ()  # commands that make its data

    @property
    def about(self) -> list[tuple[str, str]]:
        """Each file and what it is for."""
        return [(name, _ABOUT.get(name, "what is trained, on what and how")) for name in self.files]

    @property
    def next_commands(self) -> tuple[str, ...]:
        """What to type from here to train it."""
        here = self.folder.absolute() == Path.cwd()
        enter = () if here else (f"cd {shlex.quote(str(self.folder))}",)
        return (*enter, *self.prepares, f"dist-trainer train {self.config}")

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        folder = str(self.folder.absolute())
        return {
            "folder": folder,
            "files": list(self.files),
            "run": self.run,
            "next": list(self.next_commands),
        }


def plan_project(name: str | None, example: Example | None) -> Project:
    """A project in the folder `name`, or in the current one; from the example, or from the template."""
    folder = Path(name or ".")
    if example is not None:
        config, run, text = f"{example.name}.yaml", example.run, example.text
        own: dict[str, str] = {}
        prepares = example.prepares
    else:
        config, run, prepares = _CONFIG, run_name(folder), ()
        name_line = write_yaml({"name": run}).rstrip()  # quoted where YAML would read a number, as of 2024
        text = _template(_CONFIG).replace("name: new-project                #", f"{name_line:<32} #", 1)
        own = {_MODULE: _template(_MODULE)}
    profile = cluster_profile(config)
    files = {
        config: _EDITORS + text,
        **own,
        **({_PROFILE: profile} if profile else {}),
        SCHEMA: json.dumps(json_schema(), indent=2) + "\n",
        _IGNORED: _template("gitignore"),
    }
    project = Project(folder, files, config, run, prepares)
    return Project(folder, {**files, _README: _readme(project)}, config, run, prepares)


def write_project(project: Project) -> None:
    """Make its files. UsageError where one of them is there already: nothing is written then."""
    folder = project.folder
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is there and no folder; give another NAME")
    there = [name for name in project.files if (folder / name).exists() or (folder / name).is_symlink()]
    if there:
        raise UsageError(
            f"{folder.absolute()} has {listed(there, 'and')} already, and nothing is overwritten; give the NAME of a "
            "new folder, or move what is there away"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in project.files.items():
        with (folder / name).open("x", encoding="utf-8") as file:
            file.write(text)


def run_name(folder: Path) -> str:
    """The folder's name as that of a run: letters, digits, dots and dashes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", folder.absolute().name).strip("._-")[:64] or "run"


def _template(name: str) -> str:
    return (_TEMPLATE / name).read_text(encoding="utf-8")


def _readme(project: Project) -> str:
    rows = [f"| `{name}` | {about} |" for name, about in project.about if name != _IGNORED]
    prepare = "Make the data, once:\n\n" + "".join(f"    {line}\n" for line in project.prepares) + "\n"
    filled = {
        "NAME": project.run,
        "RUN": project.run,
        "CONFIG": project.config,
        "FILES": "\n".join(rows),
        "PREPARE": prepare if project.prepares else "",
        "SLURM": _on_slurm(project),
    }
    return re.sub(r"@(\w+)@", lambda found: filled[found[1]], _template(_README))


def _on_slurm(project: Project) -> str:
    if _PROFILE not in project.files:
        return (
            "On a SLURM cluster, `dist-trainer init` in an empty folder writes a `slurm.yaml` with the facts of that "
            "cluster;\ncopy it here.\n"
        )
    return (
        "On the cluster; the first one shows what would be sent:\n\n"
        f"    dist-trainer submit {project.config} {_PROFILE} --dry-run\n"
        f"    dist-trainer submit {project.config} {_PROFILE}\n"
        "    dist-trainer jobs\n"
    )
