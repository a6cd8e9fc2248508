"""Tensors: every form becomes the frames that our own service takes, every malformed one is refused, answers come out raw."""

from __future__ import annotations

import contextlib
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference import grpc_service_pb2 as oip
from offramp.v1 import classification_pb2 as pb
from offramp_model.routing import ExitReason
from offramp_server.engine.types import Answer
from offramp_server.errors import InvalidRequestError, UnsupportedError
from offramp_server.rpc.oip.tensors import WantedOutput, list_outputs, read_frames, read_outputs, write_outputs
from tests.unit.server.rpc.manifests import CLASSES, tiny_manifest

MOST = 8
MANIFEST = tiny_manifest()
RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (2, 3, 5, 3), np.uint8)
VALUES = RANDOM.normal(size=(2, 3, 4, 4)).astype(np.float32)
FILES = [b"first file", b""]

Tensor = oip.ModelInferRequest.InferInputTensor


def request(
    datatype: str, shape: tuple[int, ...], raw: bytes | None = None, name: str = "image", **contents: object
) -> oip.ModelInferRequest:
    message = oip.ModelInferRequest(inputs=[Tensor(name=name, datatype=datatype, shape=shape)])
    if raw is not None:
        message.raw_input_contents.append(raw)
    if contents:
        message.inputs[0].contents.CopyFrom(oip.InferTensorContents(**contents))
    return message


def packed(elements: list[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


@pytest.mark.parametrize(
    "message",
    [
        request("UINT8", PIXELS.shape, PIXELS.tobytes()),
        request("UINT8", PIXELS.shape, uint_contents=PIXELS.ravel().tolist()),
    ],
    ids=["raw", "contents"],
)
def test_pixels_become_one_frame_a_picture(message: oip.ModelInferRequest) -> None:
    assert read_frames(message, MOST) == [
        pb.Frame(rgb8=pb.RawImage(data=picture.tobytes(), height=3, width=5)) for picture in PIXELS
    ]


@pytest.mark.parametrize(
    "message",
    [
        request("FP32", VALUES.shape, VALUES.astype("<f4").tobytes()),
        request("FP32", VALUES.shape, fp32_contents=VALUES.ravel().tolist()),
    ],
    ids=["raw", "contents"],
)
def test_normalised_pixels_become_tensors(message: oip.ModelInferRequest) -> None:
    assert read_frames(message, MOST) == [
        pb.Frame(tensor=pb.FloatTensor(data=value.astype("<f4").tobytes(), shape=(3, 4, 4))) for value in VALUES
    ]


@pytest.mark.parametrize(
    "message",
    [
        request("BYTES", (2,), packed(FILES)),
        request("BYTES", (2, 1), packed(FILES)),
        request("BYTES", (2,), bytes_contents=FILES),
    ],
    ids=["raw", "raw, in a column", "contents"],
)
def test_files_become_encoded_frames(message: oip.ModelInferRequest) -> None:
    assert read_frames(message, MOST) == [pb.Frame(encoded=file) for file in FILES]


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (oip.ModelInferRequest(), "inputs"),
        (request("UINT8", (1, 1, 1, 3), b"123", name="picture"), "inputs"),
        (oip.ModelInferRequest(inputs=[Tensor(name="image"), Tensor(name="image")]), "inputs"),
        (request("FP16", (1, 3, 4, 4), bytes(96)), "inputs[0].datatype"),
        (request("UINT8", (4, 4, 3), bytes(48)), "inputs[0].shape"),
        (request("UINT8", (1, 4, 4, 4), bytes(64)), "inputs[0].shape"),
        (request("UINT8", (0, 4, 4, 3), b""), "inputs[0].shape"),
        (request("UINT8", (1, 0, 2**40, 3), b""), "inputs[0].shape"),
        (request("UINT8", (-1, 4, 4, 3), b""), "inputs[0].shape"),
        (request("UINT8", (MOST + 1, 1, 1, 3), bytes(3 * MOST + 3)), "inputs[0].shape"),
        (request("UINT8", (1, 2**31, 2**31, 3), bytes(3)), "inputs[0]"),
        (request("UINT8", (1, 2, 2, 3), bytes(11)), "inputs[0]"),
        (request("UINT8", (1, 1, 1, 3)), "inputs[0]"),
        (request("UINT8", (1, 1, 1, 3), uint_contents=[1, 2, 256]), "inputs[0].contents.uint_contents"),
        (request("UINT8", (1, 1, 1, 3), b"123", uint_contents=[1, 2, 3]), "raw_input_contents"),
        (request("FP32", (1, 4, 4, 3), bytes(192)), "inputs[0].shape"),
        (request("FP32", (1, 3, 4, 4), bytes(191)), "inputs[0]"),
        (request("BYTES", (3,), packed(FILES)), "inputs[0]"),
        (request("BYTES", (2, 2), packed(FILES)), "inputs[0].shape"),
        (request("BYTES", (1,), b"\x05\x00\x00\x00abc"), "raw_input_contents[0]"),
        (request("BYTES", (1,), b"\x05\x00"), "raw_input_contents[0]"),
    ],
)
def test_a_malformed_tensor_is_refused_by_its_field(message: oip.ModelInferRequest, field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        read_frames(message, MOST)
    assert caught.value.field == field


@given(st.binary(max_size=60), st.integers(-2, 5))
def test_no_bytes_escape_as_another_error(data: bytes, images: int) -> None:
    with contextlib.suppress(InvalidRequestError):
        assert len(read_frames(request("BYTES", (images,), data), MOST)) == images


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=MOST))
def test_files_of_any_content_come_through(files: list[bytes]) -> None:
    frames = read_frames(request("BYTES", (len(files),), packed(files)), MOST)
    assert [frame.encoded for frame in frames] == files


def test_shared_memory_is_unsupported() -> None:
    message = request("UINT8", (1, 1, 1, 3))
    message.inputs[0].parameters["shared_memory_region"].string_param = "region"
    with pytest.raises(UnsupportedError, match="shared memory"):
        read_frames(message, MOST)
    message = oip.ModelInferRequest()
    message.outputs.add(name="exit").parameters["shared_memory_region"].string_param = "region"
    with pytest.raises(UnsupportedError, match="shared memory"):
        read_outputs(message, MANIFEST)


# --- out --------------------------------------------------------------------------------------------------------------


def answer(probabilities: list[float], exit: int) -> Answer:
    return Answer(np.array(probabilities, np.float32), exit, ExitReason.POLICY, (), 0.0, 0.0)


ANSWERS = [answer([0.1, 0.2, 0.3, 0.4], 1), answer([0.5, 0.25, 0.125, 0.125], 4)]


def written(wanted: list[WantedOutput]) -> dict[str, tuple[str, list[int], bytes]]:
    response = oip.ModelInferResponse()
    write_outputs(response, wanted, ANSWERS, MANIFEST)
    assert len(response.outputs) == len(response.raw_output_contents)
    return {
        tensor.name: (tensor.datatype, list(tensor.shape), raw)
        for tensor, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }


def test_where_no_output_is_named_all_are_given() -> None:
    outputs = written(read_outputs(oip.ModelInferRequest(), MANIFEST))
    assert outputs["label"] == ("BYTES", [2], packed([b"ship", b"cat"]))
    assert outputs["label_index"] == ("INT64", [2], np.array([3, 0], "<i8").tobytes())
    probabilities = np.stack([each.probabilities for each in ANSWERS])
    assert outputs["probabilities"] == ("FP32", [2, CLASSES], probabilities.astype("<f4").tobytes())
    assert outputs["exit"] == ("INT32", [2], np.array([1, 4], "<i4").tobytes())
    ratios = MANIFEST.costs.ratios
    assert outputs["compute"] == ("FP32", [2], np.array([ratios[0], ratios[3]], "<f4").tobytes())
    assert list(outputs) == [spec.name for spec in list_outputs(MANIFEST)]


def test_those_that_are_named_come_in_the_order_named() -> None:
    message = oip.ModelInferRequest()
    for name in ("exit", "label"):
        message.outputs.add(name=name)
    assert list(written(read_outputs(message, MANIFEST))) == ["exit", "label"]


@pytest.mark.parametrize(("asked", "given_"), [(2, 2), (100, CLASSES)])
def test_the_best_classes_can_be_asked_for(asked: int, given_: int) -> None:
    message = oip.ModelInferRequest()
    message.outputs.add(name="probabilities").parameters["classification"].int64_param = asked
    datatype, shape, raw = written(read_outputs(message, MANIFEST))["probabilities"]
    assert (datatype, shape) == ("BYTES", [2, given_])
    assert raw.startswith(packed([b"0.400000:3:ship", b"0.300000:2:frog"]))


def test_an_output_that_does_not_exist_is_refused_by_its_place() -> None:
    message = oip.ModelInferRequest()
    message.outputs.add(name="exit")
    message.outputs.add(name="depth")
    with pytest.raises(InvalidRequestError, match="probabilities") as caught:
        read_outputs(message, MANIFEST)
    assert caught.value.field == "outputs[1].name"


def test_only_probabilities_have_best_classes() -> None:
    message = oip.ModelInferRequest()
    message.outputs.add(name="exit").parameters["classification"].int64_param = 2
    with pytest.raises(InvalidRequestError, match="probabilities"):
        read_outputs(message, MANIFEST)
