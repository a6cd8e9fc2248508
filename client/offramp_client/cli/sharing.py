"""Groups of options that several commands have: written once, and given to each command as one value."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any


def shares(**readers: Callable[..., Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the parameters of each reader, and what the reader makes of them as the parameter of the reader's name."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True)
        groups = {name: inspect.signature(reader, eval_str=True).parameters for name, reader in readers.items()}

        @functools.wraps(command)
        def run(**given: Any) -> None:
            for name, group in groups.items():
                given[name] = readers[name](**{option: given.pop(option) for option in group})
            command(**given)

        kept = [parameter for name, parameter in own.parameters.items() if name not in readers]
        parameters = [*kept, *(parameter for group in groups.values() for parameter in group.values())]
        run.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate
