"""The page of the command line: the options of our two typer commands, and the server's settings, as tables."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum, EnumType
from inspect import Parameter, getdoc, signature
from typing import Any, cast, get_args

import typer
from pydantic.fields import FieldInfo
from typer.models import ArgumentInfo, OptionInfo

from offramp_client.cli import app as client
from offramp_server.config import PROGRAM, Settings, build_parser
from offramp_training.__main__ import app as training

HEAD = """\
# Command line

Three commands: `offramp` talks to a server, `offramp-server` is one, `offramp-train` makes the bundles that it serves. This page
is written from their sources by `docs/reference/generate.py`.

## Completion

```
offramp --install-completion          # commands, options, policies, and the models that the server has loaded
offramp-train --install-completion    # commands, options, presets
pip install shtab && shtab --shell=bash --prog offramp-server offramp_server.config.build_parser > offramp-server.bash
```

The first two are for bash, zsh, fish and PowerShell. Models are asked for at `OFFRAMP_ADDRESS`, or at the `--address` on the same
line; bash cuts words at the colon of `HOST:PORT`, so there the variable is the surer way. The server's parser is argparse's, and
completes nothing by itself: shtab writes a script for bash or zsh from it, to be sourced or put where your shell looks for such
scripts.
"""
COLUMNS = ("| {} | what | default |", "| --- | --- | --- |")


def render() -> str:
    """The page in Markdown, the same for the same commands."""
    return "\n".join((HEAD, *_typer_app("offramp", client), *_server(), *_typer_app("offramp-train", training)))


def _typer_app(name: str, app: typer.Typer) -> Iterator[str]:
    yield f"## {name}\n\n{app.info.help}\n"
    for command in app.registered_commands:
        assert command.callback is not None
        usage, rows = [name, str(command.name)], []
        for parameter in signature(command.callback, eval_str=True).parameters.values():
            kind, described = get_args(parameter.annotation)  # every parameter is Annotated[its type, typer's description]
            if isinstance(described, ArgumentInfo):
                usage.append(described.metavar or f"[{parameter.name.upper()}]")
            rows.append(_parameter(parameter, kind, described))
        text = _text(command.help or getdoc(command.callback) or "")
        yield f"### {name} {command.name}\n\n{text}\n\n`{' '.join(usage)} [OPTIONS]`\n"
        yield "\n".join((COLUMNS[0].format("option"), COLUMNS[1], *rows, ""))


def _parameter(parameter: Parameter, kind: Any, described: ArgumentInfo | OptionInfo) -> str:
    if isinstance(described, ArgumentInfo):
        name = described.metavar or parameter.name.upper()
    else:
        # inside Annotated, typer keeps the first name that was given as the default
        given = [each for each in (described.default, *(described.param_decls or ())) if isinstance(each, str)]
        name = given[0] if given else f"--{parameter.name.replace('_', '-')}"
        enums = [cast(type[Enum], part) for part in (kind, *get_args(kind)) if isinstance(part, EnumType)]
        choices = [str(choice) for enum in enums for choice in enum]
        name = " ".join(filter(None, (name, described.metavar or "|".join(choices))))
    what = f"{described.help}" + (f" Or `{described.envvar}` in the environment." if described.envvar else "")
    default = "required" if parameter.default is Parameter.empty else _value(parameter.default)
    return f"| `{_cell(name)}` | {_cell(what)} | {default} |"


def _server() -> Iterator[str]:
    parser = build_parser()
    yield f"## {PROGRAM}\n\n{parser.description} {parser.epilog}\n"
    yield "\n".join((COLUMNS[0].format("setting"), COLUMNS[1], *map(_setting, Settings.model_fields.items()), ""))


def _setting(named: tuple[str, FieldInfo]) -> str:
    name, field = named
    # What a factory gives, such as a folder of this installation, is not the same everywhere.
    default = _value(field.default) if field.default_factory is None else "depends on the installation"
    return f"| `--{name.replace('_', '-')}` | {_cell(field.description or '')} | {default} |"


def _value(default: object) -> str:
    return "" if default is False or default in (None, (), [], "") else f"`{default}`"


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("<", "&lt;")


def _text(help: str) -> str:
    return "\n\n".join(" ".join(part.split()) for part in help.strip().split("\n\n"))
