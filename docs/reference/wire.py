"""The page of the wire: every service, message and enum of `offramp.v1`, with the comments of the protos."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)
from grpc_tools import protoc

ROOT = Path(__file__).parents[2] / "proto"
PACKAGE = "offramp/v1"

HEAD = """\
# The wire

Package `offramp.v1`, the contract for clients in any language: `proto/offramp/v1/` has the protos, and the server answers
reflection. This page is written from their comments by `docs/reference/generate.py`. A field without `optional` that is left out
is its type's zero; the fields of a *oneof* exclude one another. The Open Inference Protocol that the server speaks too has
[a page of its own](../open-inference-protocol.md).
"""

Comments = dict[tuple[int, ...], str]
"""By the path of a declaration in its file, as `SourceCodeInfo` numbers them."""


def render() -> str:
    """The page in Markdown, the same for the same protos."""
    files = _described(sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / PACKAGE).glob("*.proto")))
    sections = [HEAD]
    for file in files:
        comments = {tuple(each.path): _text(each.leading_comments) for each in file.source_code_info.location}
        sections += _sections(file, comments)
    return "\n".join(sections)


def _described(protos: Sequence[str]) -> Sequence[FileDescriptorProto]:
    with tempfile.NamedTemporaryFile() as file:
        arguments = [f"-I{ROOT}", f"--descriptor_set_out={file.name}", "--include_source_info", *protos]
        if protoc.main(["protoc", *arguments]) != 0:
            raise SystemExit("protoc failed")
        return FileDescriptorSet.FromString(Path(file.name).read_bytes()).file


def _sections(file: FileDescriptorProto, comments: Comments) -> Iterator[str]:
    for index, service in enumerate(file.service):
        yield from _service(service, (FileDescriptorProto.SERVICE_FIELD_NUMBER, index), comments)
    for index, message in enumerate(file.message_type):
        yield from _message(message, (FileDescriptorProto.MESSAGE_TYPE_FIELD_NUMBER, index), comments)
    for index, enum in enumerate(file.enum_type):
        yield from _enum(enum, enum.name, (FileDescriptorProto.ENUM_TYPE_FIELD_NUMBER, index), comments)


def _service(service: ServiceDescriptorProto, path: tuple[int, ...], comments: Comments) -> Iterator[str]:
    yield f"## {service.name}\n\n{comments[path]}\n"
    for index, method in enumerate(service.method):
        asked = f"{'stream ' * method.client_streaming}{_link(method.input_type)}"
        answered = f"{'stream ' * method.server_streaming}{_link(method.output_type)}"
        text = comments[(*path, ServiceDescriptorProto.METHOD_FIELD_NUMBER, index)]
        yield f"**{method.name}** ({asked}) → {answered}\n\n{text}\n"


def _message(message: DescriptorProto, path: tuple[int, ...], comments: Comments, outer: str = "") -> Iterator[str]:
    name = outer + message.name
    yield f"### {name}\n\n{comments[path]}\n"
    rows = []
    entries = {nested.name: nested for nested in message.nested_type if nested.options.map_entry}
    for index, field in enumerate(message.field):
        entry = entries.get(field.type_name.rpartition(".")[2])
        type_ = _type(field) if entry is None else f"map of {_type(entry.field[0])} to {_type(entry.field[1])}"
        if entry is None and field.label == FieldDescriptorProto.LABEL_REPEATED:
            type_ = f"repeated {type_}"
        elif field.proto3_optional:
            type_ = f"optional {type_}"
        elif field.HasField("oneof_index"):
            type_ += f" (oneof {message.oneof_decl[field.oneof_index].name})"
        text = comments[(*path, DescriptorProto.FIELD_FIELD_NUMBER, index)]
        rows.append(f"| {field.number} | `{field.name}` | {type_} | {_cell(text)} |")
    if rows:
        yield "\n".join(("| number | field | type | |", "| --- | --- | --- | --- |", *rows, ""))
    for index, nested in enumerate(message.nested_type):
        if nested.name not in entries:
            yield from _message(nested, (*path, DescriptorProto.NESTED_TYPE_FIELD_NUMBER, index), comments, f"{name}.")
    for index, enum in enumerate(message.enum_type):
        yield from _enum(enum, f"{name}.{enum.name}", (*path, DescriptorProto.ENUM_TYPE_FIELD_NUMBER, index), comments)


def _enum(enum: EnumDescriptorProto, name: str, path: tuple[int, ...], comments: Comments) -> Iterator[str]:
    yield f"### {name}\n\n{comments[path]}\n"
    rows = [
        f"| {value.number} | `{value.name}` | {_cell(comments[(*path, EnumDescriptorProto.VALUE_FIELD_NUMBER, index)])} |"
        for index, value in enumerate(enum.value)
    ]
    yield "\n".join(("| number | value | |", "| --- | --- | --- |", *rows, ""))


def _type(field: FieldDescriptorProto) -> str:
    if field.type_name:
        return _link(field.type_name)
    return FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()


def _link(full_name: str) -> str:
    """A link to one of our own declarations by the anchor that Markdown gives its heading, or the name of another package's."""
    ours = f".{PACKAGE.replace('/', '.')}."
    if not full_name.startswith(ours):
        return f"`{full_name.lstrip('.')}`"
    name = full_name.removeprefix(ours)
    return f"[{name}](#{name.replace('.', '').lower()})"


def _text(comment: str) -> str:
    return "\n\n".join(" ".join(part.split()) for part in comment.strip().split("\n\n"))


def _cell(text: str) -> str:
    return text.replace("\n\n", "<br>").replace("|", r"\|")
