"""The command that starts a project."""

from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from dist_trainer.cli.completion import complete_example
from dist_trainer.cli.words import SETTINGS, Json, print_json

if TYPE_CHECKING:
    from dist_trainer.new_project.project import Project

app = typer.Typer(**SETTINGS)
_EXAMPLE = "--example"
_LIST = ""  # the option without a name


class _Init(TyperCommand):
    """`--example` alone lists the examples."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give it an empty name."""
        given = list(args)
        for number, text in enumerate(args):
            if text == _EXAMPLE and (number + 1 == len(args) or args[number + 1].startswith("-")):
                given[number] = f"{_EXAMPLE}={_LIST}"
        return super().parse_args(ctx, given)


@app.command(cls=_Init, no_args_is_help=False)
def init(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="The folder to make; default: the current one.")
    ] = None,
    example: Annotated[
        str | None,
        typer.Option(
            _EXAMPLE,
            metavar="NAME",
            help="Start from this example; without a name: list them.",
            autocompletion=complete_example,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Start a project that trains as it is: a configuration, a model and data to change, a profile of the cluster."""
    from dist_trainer.new_project.examples import examples, find_example, listing
    from dist_trainer.new_project.project import plan_project, write_project

    if example == _LIST:
        known = examples()
        if as_json:
            print_json({"examples": [{"name": each.name, "about": each.about} for each in known]})
        else:
            print(listing(known))
        return
    project = plan_project(name, find_example(example) if example else None)
    write_project(project)
    if as_json:
        print_json(project.as_json())
    else:
        _show(project)


def _show(project: "Project") -> None:
    print(f"made {project.folder.absolute()}")
    width = max(map(len, project.files))
    for name, about in project.about:
        print(f"  {name:<{width}}  {about}")
    print("next:")
    for command in project.next_commands:
        print(f"  {command}")
