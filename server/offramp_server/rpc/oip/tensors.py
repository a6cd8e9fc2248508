"""Tensors of a request and of its answer: pictures in, labels, probabilities, exits and compute out."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from inference import grpc_service_pb2 as oip
from offramp.v1 import classification_pb2 as pb
from offramp_model.bundle import Manifest
from offramp_server.engine.types import Answer
from offramp_server.errors import InvalidRequestError, UnsupportedError
from offramp_server.rpc.oip.parameters import read_integer

INPUT = "image"
INPUT_FORMS = "UINT8 [N, height, width, 3] pixels; BYTES [N] JPEG or PNG files; FP32 [N, 3, size, size] normalised pixels"
PATH = "inputs[0]"
SHARED_MEMORY = "shared memory is not served: send tensors in the message"


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """An output tensor; the first dimension, of images, is left out of `dims`."""

    name: str
    datatype: str
    dims: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class WantedOutput:
    """An output that a request asks for."""

    spec: OutputSpec
    best: int = 0
    """Triton's classification extension: so many classes as `probability:index:label`; 0 for the tensor itself."""


def list_outputs(manifest: Manifest) -> tuple[OutputSpec, ...]:
    """What a model gives."""
    return (
        OutputSpec("label", "BYTES"),
        OutputSpec("label_index", "INT64"),
        OutputSpec("probabilities", "FP32", (manifest.network.classes,)),
        OutputSpec("exit", "INT32"),
        OutputSpec("compute", "FP32"),
    )


# --- in ---------------------------------------------------------------------------------------------------------------


def read_frames(request: oip.ModelInferRequest, max_frames: int) -> list[pb.Frame]:
    """A frame for each picture of the request's one tensor; the pictures themselves are checked when they are read.

    Raises InvalidRequestError or UnsupportedError.
    """
    if len(request.inputs) != 1 or request.inputs[0].name != INPUT:
        names = [tensor.name for tensor in request.inputs]
        raise InvalidRequestError("inputs", f"are {names}: give one tensor, {INPUT!r}")
    tensor, raw = request.inputs[0], request.raw_input_contents
    if "shared_memory_region" in tensor.parameters:
        raise UnsupportedError(f"{PATH}.parameters.shared_memory_region: {SHARED_MEMORY}")
    if len(raw) > 1 or (raw and tensor.HasField("contents")):
        raise InvalidRequestError("raw_input_contents", "must be one, and then without `contents`, for one tensor")
    shape = tuple(tensor.shape)
    match tensor.datatype:
        case "UINT8":
            _check_shape(shape, (None, None, None, 3), max_frames)
            return _read_pixels(shape, raw[0] if raw else _uint8_bytes(tensor.contents.uint_contents))
        case "FP32":
            _check_shape(shape, (None, 3, None, None), max_frames)
            data = raw[0] if raw else np.array(tensor.contents.fp32_contents, "<f4").tobytes()
            return [
                pb.Frame(tensor=pb.FloatTensor(data=each, shape=shape[1:]))
                for each in _split(data, shape[0], 4 * math.prod(shape))
            ]
        case "BYTES":
            _check_shape(shape, (None, 1) if len(shape) == 2 else (None,), max_frames)
            files = _split_bytes(raw[0]) if raw else list(tensor.contents.bytes_contents)
            if len(files) != shape[0]:
                raise InvalidRequestError(PATH, f"holds {len(files)} files and its shape says {shape[0]}")
            return [pb.Frame(encoded=file) for file in files]
        case other:
            raise InvalidRequestError(f"{PATH}.datatype", f"is {other!r}: give {INPUT_FORMS}")


def _check_shape(shape: tuple[int, ...], wanted: tuple[int | None, ...], max_frames: int) -> None:
    fits = len(shape) == len(wanted) and all(size == want or want is None for size, want in zip(shape, wanted, strict=True))
    if not fits or any(size < 1 for size in shape):
        raise InvalidRequestError(f"{PATH}.shape", f"is {list(shape)}: give {INPUT_FORMS}")
    if shape[0] > max_frames:
        raise InvalidRequestError(f"{PATH}.shape", f"says {shape[0]} pictures: send at most {max_frames} in one request")


def _read_pixels(shape: tuple[int, ...], data: bytes) -> list[pb.Frame]:
    images, height, width, _ = shape
    parts = _split(data, images, math.prod(shape))
    return [pb.Frame(rgb8=pb.RawImage(data=part, height=height, width=width)) for part in parts]


def _split(data: bytes, parts: int, wanted: int) -> list[bytes]:
    if len(data) != wanted:
        raise InvalidRequestError(PATH, f"has {len(data)} bytes of elements and its shape asks for {wanted}")
    step = wanted // parts
    return [data[start : start + step] for start in range(0, wanted, step)]


def _split_bytes(data: bytes) -> list[bytes]:
    """Elements of a raw BYTES tensor, each with its length in four little-endian bytes before it."""
    elements, start = list[bytes](), 0
    while start < len(data):
        end = start + 4
        if end <= len(data):
            end += struct.unpack_from("<I", data, start)[0]
        if end > len(data):
            raise InvalidRequestError(
                "raw_input_contents[0]", "is cut short: each element needs its length in four bytes before it"
            )
        elements.append(data[start + 4 : end])
        start = end
    return elements


def _uint8_bytes(values: Sequence[int]) -> bytes:
    array = np.array(values, np.uint32)
    if array.size and array.max() > 255:
        raise InvalidRequestError(f"{PATH}.contents.uint_contents", f"holds {array.max()}: UINT8 goes up to 255")
    return array.astype(np.uint8).tobytes()


# --- out --------------------------------------------------------------------------------------------------------------


def read_outputs(request: oip.ModelInferRequest, manifest: Manifest) -> list[WantedOutput]:
    """What the request asks for; everything where it names nothing. Raises InvalidRequestError or UnsupportedError."""
    specs = {spec.name: spec for spec in list_outputs(manifest)}
    if not request.outputs:
        return [WantedOutput(spec) for spec in specs.values()]
    wanted = []
    for index, output in enumerate(request.outputs):
        path = f"outputs[{index}]"
        if output.name not in specs:
            raise InvalidRequestError(f"{path}.name", f"{output.name!r} is no output: there is {', '.join(specs)}")
        if "shared_memory_region" in output.parameters:
            raise UnsupportedError(f"{path}.parameters.shared_memory_region: {SHARED_MEMORY}")
        best = 0
        if "classification" in output.parameters:
            best = read_integer("classification", output.parameters["classification"], 2**31)
            if best and output.name != "probabilities":
                raise InvalidRequestError(f"{path}.parameters.classification", "belongs to the output `probabilities`")
        wanted.append(WantedOutput(specs[output.name], best))
    return wanted


def write_outputs(
    response: oip.ModelInferResponse, wanted: Sequence[WantedOutput], answers: Sequence[Answer], manifest: Manifest
) -> None:
    """Add the tensors, each with one row an answer, in raw form: Triton's client reads no other."""
    for output in wanted:
        spec = output.spec
        if output.best:
            best = min(output.best, manifest.network.classes)
            datatype, shape, data = "BYTES", [len(answers), best], _write_best(answers, manifest.labels, best)
        else:
            datatype, shape, data = spec.datatype, [len(answers), *spec.dims], WRITERS[spec.name](answers, manifest)
        response.outputs.add(name=spec.name, datatype=datatype, shape=shape)
        response.raw_output_contents.append(data)


def _labels(answers: Sequence[Answer]) -> list[int]:
    return [int(answer.probabilities.argmax()) for answer in answers]


def _pack(elements: Sequence[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def _write_best(answers: Sequence[Answer], labels: Sequence[str], best: int) -> bytes:
    elements = []
    for answer in answers:
        for label in np.argsort(-answer.probabilities, kind="stable")[:best].tolist():
            elements.append(f"{answer.probabilities[label]:f}:{label}:{labels[label]}".encode())
    return _pack(elements)


Writer = Callable[[Sequence[Answer], Manifest], bytes]

WRITERS: dict[str, Writer] = {
    "label": lambda answers, manifest: _pack([manifest.labels[label].encode() for label in _labels(answers)]),
    "label_index": lambda answers, _: np.array(_labels(answers), "<i8").tobytes(),
    "probabilities": lambda answers, _: np.stack([answer.probabilities for answer in answers]).astype("<f4").tobytes(),
    "exit": lambda answers, _: np.array([answer.exit for answer in answers], "<i4").tobytes(),
    "compute": lambda answers, manifest: np.array(
        [manifest.costs.ratios[answer.exit - 1] for answer in answers], "<f4"
    ).tobytes(),
}
