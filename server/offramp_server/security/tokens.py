"""The tokens file: which clients there are, by which tokens they are known, what each may do and how much of it.

    [[clients]]
    name = "gate-3"
    token_sha256 = ["2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"]
    scopes = ["classify"]
    max_streams = 4
    max_in_flight = 64
    max_frames_per_s = 120

The file holds digests alone, so who reads it can't act as a client. Of two tokens of one client either serves, which is how a
token is changed without a gap.
"""

from __future__ import annotations

import hmac
import logging
import re
import secrets
import tomllib
from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from offramp_server.errors import PermissionDeniedError, UnauthenticatedError
from offramp_server.security.limits import ClientLimits, ClientUsage
from offramp_server.security.watch import FileWatch

logger = logging.getLogger(__name__)

Scope = Literal["classify", "admin"]
CLIENT_NAME = r"^[A-Za-z0-9][A-Za-z0-9._@:/-]{0,63}$"
BEARER = re.compile(r"bearer +(\S+) *", re.IGNORECASE)
LOOK_EVERY_S = 1.0
"""How often frames of open streams have the file looked at; every call does."""
REMEDY = "send the metadata `authorization: Bearer TOKEN`"


class TokensError(Exception):
    """The tokens file can't be used; the message is one line and names the setting, and never a token."""


class ClientEntry(BaseModel):
    """One client of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Annotated[str, Field(pattern=CLIENT_NAME)]
    token_sha256: Annotated[tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")], ...], Field(min_length=1)]
    """Digests of its tokens, in hex."""
    scopes: Annotated[frozenset[Scope], Field(min_length=1)]
    max_streams: PositiveInt | None = None
    max_in_flight: PositiveInt | None = None
    max_frames_per_s: PositiveFloat | None = None

    @property
    def limits(self) -> ClientLimits:
        """Its bounds."""
        return ClientLimits(self.max_streams, self.max_in_flight, self.max_frames_per_s)


class ClientTable(BaseModel):
    """The whole file."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    clients: Annotated[tuple[ClientEntry, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _tell_apart(self) -> ClientTable:
        _refuse_twice("the name", (entry.name for entry in self.clients))
        _refuse_twice("a token_sha256", (digest for entry in self.clients for digest in entry.token_sha256))
        return self


class Caller:
    """Whoever makes a call. This one is anybody, as where there is no tokens file: every scope, no name, no limit."""

    name = ""

    def require(self, scope: Scope) -> None:
        """Raises UnauthenticatedError or PermissionDeniedError where the caller may not do what needs this scope."""

    def enter_stream(self) -> None:
        """Count one more open stream. Raises OverloadedError."""

    def leave_stream(self) -> None:
        """Count one less."""

    def enter_frame(self) -> None:
        """Count one more frame. Raises OverloadedError, or UnauthenticatedError where the token has been taken back."""

    def leave_frame(self) -> None:
        """Count one less."""


class TokenCaller(Caller):
    """A caller who is known by a token."""

    def __init__(self, tokens: Tokens, name: str, digest: str, usage: ClientUsage) -> None:
        self.name = name
        self._tokens, self._digest, self._usage = tokens, digest, usage

    def require(self, scope: Scope) -> None:
        """See Caller."""
        self._tokens.require(self._digest, scope)

    def enter_stream(self) -> None:
        """See Caller."""
        self._usage.enter_stream()

    def leave_stream(self) -> None:
        """See Caller."""
        self._usage.leave_stream()

    def enter_frame(self) -> None:
        """See Caller; asked again at every frame, so that a token that is taken back ends with its streams still open."""
        self._tokens.require(self._digest, "classify")
        self._usage.enter_frame()

    def leave_frame(self) -> None:
        """See Caller."""
        self._usage.leave_frame()


class Tokens:
    """Knows callers by their tokens. A changed file is read again; one that can't be used leaves the former in force."""

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        """`clock` gives seconds. Raises TokensError."""
        self._path, self._clock, self._looked_at = path, clock, clock()
        self._watch = FileWatch(path)
        self._usages: dict[str, ClientUsage] = {}
        self._take(read_tokens(path))

    def identify(self, authorization: Iterable[str]) -> Caller:
        """Who has sent these `authorization` headers. Raises UnauthenticatedError, without a word of them."""
        self._refresh()
        headers = list(authorization)
        if not headers:
            raise UnauthenticatedError(f"this server asks for a token: {REMEDY}")
        match = BEARER.fullmatch(headers[0]) if len(headers) == 1 else None
        if match is None:
            raise UnauthenticatedError(f"the authorization is not one bearer token: {REMEDY}")
        digest = sha256(match[1].encode()).hexdigest()
        known = None
        for candidate in self._entries:  # all of them, each in constant time: how long it takes tells nothing
            if hmac.compare_digest(candidate, digest):
                known = candidate
        if known is None:
            raise UnauthenticatedError("the token is not one of this server's")
        name = self._entries[known].name
        return TokenCaller(self, name, known, self._usages[name])

    def require(self, digest: str, scope: Scope) -> None:
        """Raises UnauthenticatedError where the token is no longer known, PermissionDeniedError where it lacks the scope."""
        if self._clock() - self._looked_at >= LOOK_EVERY_S:
            self._refresh()
        entry = self._entries.get(digest)
        if entry is None:
            raise UnauthenticatedError("the token is not one of this server's any more")
        if scope not in entry.scopes:
            has = ", ".join(sorted(entry.scopes))
            raise PermissionDeniedError(f"this needs the scope {scope}, and client {entry.name!r} has {has}")

    def _refresh(self) -> None:
        self._looked_at = self._clock()
        if not self._watch.changed():
            return
        try:
            table = read_tokens(self._path)
        except TokensError as error:
            logger.error("the tokens stay as they were: %s", error)
            return
        self._take(table)
        logger.info("tokens read again", extra={"file": str(self._path), "clients": len(table.clients)})

    def _take(self, table: ClientTable) -> None:
        self._entries = {digest: entry for entry in table.clients for digest in entry.token_sha256}
        for entry in table.clients:
            usage = self._usages.get(entry.name)
            if usage is None:
                self._usages[entry.name] = ClientUsage(entry.name, entry.limits, self._clock)
            elif usage.limits != entry.limits:
                usage.set_limits(entry.limits)


def read_tokens(path: Path) -> ClientTable:
    """Read a tokens file. Raises TokensError."""
    try:
        return ClientTable.model_validate(tomllib.loads(path.read_text()))
    except OSError as error:
        raise TokensError(f"tokens_file: can't read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        place = re.search(r" \(at [a-z0-9, ]+\)$", str(error))  # the place alone: the parser's other words may quote the file
        raise TokensError(f"tokens_file: {path} is not TOML{place[0] if place else ''}") from None
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "clients"
        reason = first["msg"].removeprefix("Value error, ")
        raise TokensError(f"tokens_file: {path}: {where}: {reason}") from None


def make_token(name: str, scopes: Iterable[str]) -> tuple[str, str]:
    """A new token, 256 bits of chance, and what the tokens file says of it. Raises TokensError for a name or scope of no use."""
    token = secrets.token_urlsafe(32)
    digest = sha256(token.encode()).hexdigest()
    listed = ", ".join(f'"{scope}"' for scope in scopes)
    text = f'[[clients]]\nname = "{name}"\ntoken_sha256 = ["{digest}"]\nscopes = [{listed}]\n'
    try:
        ClientTable.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError:
        raise TokensError("name: letters, digits and . _ @ : / - make a client's name") from None
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        raise TokensError(f"{first['loc'][-1]}: {first['msg']}") from None
    return token, text


def _refuse_twice(what: str, values: Iterable[str]) -> None:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise ValueError(f"{what} {value[:16]} is there twice")
        seen.add(value)
