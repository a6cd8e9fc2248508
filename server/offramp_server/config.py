"""The server's one configuration: flags > environment > file > default, frozen once built."""

from __future__ import annotations

import argparse
import importlib.util
import ipaddress
import os
import re
from collections.abc import Sequence
from pathlib import Path
from tomllib import TOMLDecodeError
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

PROGRAM = "offramp-server"
ENVIRONMENT_PREFIX = "OFFRAMP_"
DEFAULT_MODEL = "resnet18-cifar10-joint"
MODEL_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]*(:[1-9][0-9]*)?")
FACTORY_PATTERN = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")

Port = Annotated[int, Field(ge=0, le=65535)]


class ConfigError(Exception):
    """A setting can't be used; the message is one line and names it."""


def default_store() -> Path:
    """The bundles that lie beside the model_store package: the server's embedded default."""
    spec = importlib.util.find_spec("offramp_model")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).resolve().parent.parent / "bundles"


class Settings(BaseSettings):
    """Everything that can be set. A field is `--like-this`, OFFRAMP_LIKE_THIS in the environment, like_this in the file."""

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX, env_ignore_empty=True, frozen=True, extra="forbid", allow_inf_nan=False
    )

    config: Path | None = Field(None, description="TOML file with further settings")

    host: str = Field("127.0.0.1", min_length=1, description="address to listen on, for gRPC and HTTP alike")
    grpc_port: Port = Field(50051, description="port for gRPC; 0 takes a free one")
    http_port: Port = Field(9464, description="port for /metrics, /livez and /readyz; 0 takes a free one")
    insecure: bool = Field(
        False, description="serve gRPC in the clear on an address that others can reach; without TLS nothing but loopback else"
    )
    tls_cert_file: Path | None = Field(
        None, description="PEM file with the server's certificate and those between it and its authority; makes gRPC speak TLS"
    )
    tls_key_file: Path | None = Field(None, description="PEM file with the certificate's private key, without a passphrase")
    tls_client_ca_file: Path | None = Field(
        None, description="PEM file with authorities: every client must then show a certificate that one of them has signed"
    )
    tokens_file: Path | None = Field(
        None, description="TOML file with the clients that are served, by their tokens, and what each may do; none serves anybody"
    )
    ready_file: Path | None = Field(None, description="file to write once frames are taken: the bound addresses as JSON")

    store: Path = Field(default_factory=default_store, description="folder of model bundles, <name>/<version>/")
    models: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="models to load, NAME or NAME:VERSION, separated by commas, the first being the default model; "
        f"where none is given, {DEFAULT_MODEL}, or else the only one in the store",
    )
    allow_factory: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="factories, PACKAGE.MODULE:FUNCTION, separated by commas, that bundles may build their networks with: the "
        "server imports and runs their code; a bundle that names any other is refused",
    )
    model_control: Literal["none", "explicit"] = Field(
        "none", description="whether callers may load and unload models of the store: none may, or explicit requests do"
    )
    device: str = Field("auto", min_length=1, description="device to run on: auto, cpu, cuda or a torch device string")
    backend: Literal["auto", "torch", "openvino"] = Field(
        "auto",
        description="runtime: torch, openvino, or auto, which takes OpenVINO on an x86 CPU where the bundle carries graphs",
    )
    precision: Literal["auto", "int8", "bf16", "f32"] = Field(
        "auto", description="number format: int8 (OpenVINO alone), bf16, f32, or auto, the fastest that the bundle vouches for"
    )
    openvino_threads: NonNegativeInt = Field(0, description="cores that OpenVINO takes; 0 leaves it to OpenVINO")
    torch_threads: NonNegativeInt = Field(0, description="threads of torch's forward passes on the CPU; 0 leaves it to torch")

    max_batch: PositiveInt = Field(32, description="frames in one batch")
    max_in_flight: PositiveInt = Field(
        1024,
        description="frames of one model admitted and not yet answered; more are refused, save a quarter more of those that "
        "may be degraded",
    )
    max_stage_wait_ms: NonNegativeFloat = Field(
        50.0, description="milliseconds after which a frame that waits between stages makes its stage run next, full batch or not"
    )
    stream_window: PositiveInt = Field(
        64, description="frames of one stream in flight; the stream is not read further until one leaves"
    )
    max_streams: PositiveInt = Field(1024, description="open streams; more are refused")

    drift_window: int = Field(
        2000, ge=100, description="frames under the default control that the drift scores compare with the bundle's own"
    )

    max_message_bytes: PositiveInt = Field(16 * 1024 * 1024, description="bytes of one received message")
    max_metadata_bytes: PositiveInt = Field(16 * 1024, description="bytes of one call's metadata, each entry counting 32 more")
    max_image_pixels: PositiveInt = Field(16_777_216, description="pixels of one picture, read from its header before decoding")
    max_batch_frames: PositiveInt = Field(256, description="frames in one FrameBatch message")
    decode_threads: PositiveInt = Field(2, description="threads that decode and resize pictures")

    drain_timeout_s: PositiveFloat = Field(20.0, description="seconds given to what is in flight when the server is told to stop")
    keepalive_time_s: PositiveFloat = Field(60.0, description="seconds of silence after which the server pings a client")
    keepalive_timeout_s: PositiveFloat = Field(20.0, description="seconds that a client has for answering a ping")
    min_ping_interval_s: PositiveFloat = Field(
        10.0, description="least seconds between a client's own pings; a faster one is cut off"
    )
    max_connection_age_s: NonNegativeFloat = Field(
        0.0, description="seconds after which a connection is asked to reconnect, so that balancers can spread load; 0 is never"
    )

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least severity to log")
    log_format: Literal["text", "json"] = Field("text", description="form of a log line")
    tracing: bool = Field(
        False, description="send OpenTelemetry spans of calls, frames and stages, as the OTEL_ variables say; needs offramp[otel]"
    )

    @field_validator("models", "allow_factory", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("models")
    @classmethod
    def _name_models(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for model in value:
            if not MODEL_PATTERN.fullmatch(model):
                raise ValueError(f"{model!r} is neither NAME nor NAME:VERSION")
        if len(set(value)) != len(value):
            raise ValueError("names a model twice")
        return value

    @field_validator("allow_factory")
    @classmethod
    def _name_factories(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for factory in value:
            if not FACTORY_PATTERN.fullmatch(factory):
                raise ValueError(f"{factory!r} is not PACKAGE.MODULE:FUNCTION")
        return value

    @model_validator(mode="after")
    def _open_no_door_unasked(self) -> Settings:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise ValueError("tls_cert_file and tls_key_file belong together: give both")
        if self.tls_client_ca_file is not None and self.tls_cert_file is None:
            raise ValueError("tls_client_ca_file needs TLS: give tls_cert_file and tls_key_file too")
        if self.insecure and self.tls_cert_file is not None:
            raise ValueError("insecure contradicts tls_cert_file: leave one of them out")
        if is_loopback(self.host):
            return self
        if not self.insecure and self.tls_cert_file is None:
            raise ValueError(
                f"host: others can reach {self.host}, and without TLS what they send could be read on the way: "
                "give --tls-cert-file and --tls-key-file, or ask for it in the clear with --insecure"
            )
        if self.model_control == "explicit" and self.tokens_file is None:
            raise ValueError(
                f"model_control: explicit would let anybody who reaches {self.host} load and unload models: "
                "give --tokens-file, where clients with the scope admin may"
            )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags arrive as initial values, so they win; the file that they or the environment name comes last."""
        path = init_settings().get("config") or env_settings().get("config")
        if path is None:
            return init_settings, env_settings
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, Path(path))


def is_loopback(host: str) -> bool:
    """Whether an address is of this machine alone; a name other than localhost is taken for one that is not."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def load_settings(arguments: Sequence[str]) -> Settings:
    """Build the settings from flags, the environment and the file. Raises ConfigError with one line.

    Prints help and raises SystemExit(0) on `--help`.
    """
    flags = vars(build_parser().parse_args(arguments))
    path = flags.get("config") or os.environ.get(f"{ENVIRONMENT_PREFIX}CONFIG")
    if path and not Path(path).is_file():
        raise ConfigError(f"config: there is no file {path}")
    try:
        return Settings(**flags)
    except TOMLDecodeError as error:
        raise ConfigError(f"config: {path} is not TOML: {error}") from error
    except ValidationError as error:
        raise ConfigError("; ".join(_describe(each["loc"], each["msg"], each["input"]) for each in error.errors())) from error


def build_parser() -> argparse.ArgumentParser:
    """A flag for every field; values stay text, so that pydantic alone judges them wherever they come from."""
    parser = _OneLineParser(
        prog=PROGRAM,
        description="Serve early-exit image classifiers over gRPC.",
        epilog="Every setting may also come from the environment, as OFFRAMP_GRPC_PORT for --grpc-port, or from the TOML file "
        "that --config names, as grpc_port. Flags win over the environment, which wins over the file.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for name, field in Settings.model_fields.items():
        flag, text = f"--{name.replace('_', '-')}", f"{field.description} (default: {_default(field)})"
        if field.annotation is bool:  # given alone it means yes
            parser.add_argument(flag, dest=name, nargs="?", const="true", metavar="BOOL", help=text)
        else:
            parser.add_argument(flag, dest=name, metavar=_metavar(name), help=text)
    return parser


class _OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise ConfigError(f"{message} (see {self.prog} --help)")


def _metavar(name: str) -> str:
    unit = {"_s": "SECONDS", "_ms": "MS", "_bytes": "BYTES", "_port": "PORT", "_file": "FILE"}
    return next((text for suffix, text in unit.items() if name.endswith(suffix)), name.rpartition("_")[2].upper())


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True, validated_data={})
    return "none" if value in (None, ()) else str(value).replace("%", "%%")


def _describe(location: tuple[int | str, ...], message: str, value: object) -> str:
    if not location:  # several settings together; the message names them
        return message.removeprefix("Value error, ")
    name = str(location[0])
    if name not in Settings.model_fields:
        return f"{name}: there is no such setting"
    shown = repr(value)
    reason = message.removeprefix("Value error, ").replace("Input should", "should")
    return f"{name} (--{name.replace('_', '-')}, {ENVIRONMENT_PREFIX}{name.upper()}): {reason}, got {shown[:80]}"
