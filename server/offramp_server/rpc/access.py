"""What each method of the wire asks of its caller."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from offramp_server.security.tokens import Caller, Scope, Tokens

AUTHORIZATION = "authorization"

_CLASSIFY = {
    "offramp.v1.ClassificationService": ("Classify", "StreamClassify"),
    "offramp.v1.ModelService": ("ListModels", "GetModel"),
    "inference.GRPCInferenceService": (
        "ModelReady",
        "ServerMetadata",
        "ModelMetadata",
        "ModelConfig",
        "ModelStatistics",
        "ModelInfer",
        "ModelStreamInfer",
    ),
}
_OPEN = {"inference.GRPCInferenceService": ("ServerLive", "ServerReady")}
"""As grpc.health.v1 and reflection are, which never come here: probes carry no tokens, and learn nothing but a yes or no."""


def _paths(methods: Mapping[str, tuple[str, ...]]) -> frozenset[str]:
    return frozenset(f"/{service}/{name}" for service, names in methods.items() for name in names)


OPEN, CLASSIFY = _paths(_OPEN), _paths(_CLASSIFY)


def find_scope(method: str) -> Scope | None:
    """The scope that a method, `/package.Service/Name`, needs; None for none. What is not listed here needs `admin`."""
    if method in OPEN:
        return None
    return "classify" if method in CLASSIFY else "admin"


class Access:
    """Lets callers in, or not."""

    def __init__(self, tokens: Tokens | None) -> None:
        """Without `tokens` everybody may do everything."""
        self._tokens = tokens

    def admit(self, method: str, metadata: Iterable[tuple[str, str | bytes]]) -> Caller:
        """Who calls. Raises UnauthenticatedError, or PermissionDeniedError where the caller may not call this method."""
        scope = find_scope(method)
        if self._tokens is None or scope is None:
            return Caller()
        caller = self._tokens.identify(value for key, value in metadata if key == AUTHORIZATION and isinstance(value, str))
        caller.require(scope)
        return caller
