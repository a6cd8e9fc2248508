"""What a shell completes after Tab beyond commands and options: the models that the server has loaded."""

from __future__ import annotations

import asyncio

import typer

from offramp_client.client import Client
from offramp_client.errors import OfframpClientError
from offramp_client.types import ModelSummary

TIMEOUT_S = 5.0
"""Reached only where packets vanish: who answers does so at once, and an address where nobody listens refuses at once."""


def complete_model(ctx: typer.Context) -> list[str]:
    """Names of the loaded models, the default model first."""
    models = sorted(_loaded(ctx), key=lambda model: not model.is_default)
    return list(dict.fromkeys(model.name for model in models))


def complete_version(ctx: typer.Context) -> list[str]:
    """Loaded versions of the model that stands on the command line, or else of the default model; newest first."""
    models, wanted = _loaded(ctx), ctx.params.get("model")
    names = {model.name for model in models if (model.name == wanted if wanted else model.is_default)}
    return [model.version for model in models if model.name in names]


def _loaded(ctx: typer.Context) -> list[ModelSummary]:
    # Whatever keeps the server from answering, a shell that completes has no place for the reason.
    async def ask() -> list[ModelSummary]:
        async with Client(ctx.params["address"], timeout_s=TIMEOUT_S) as client:
            return await client.models()

    try:
        return asyncio.run(ask())
    except OfframpClientError:
        return []
