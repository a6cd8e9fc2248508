"""Stages of a bundle's OpenVINO graphs on a CPU: int8, or the bundle's float weights as bfloat16 or float32."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from safetensors.numpy import load_file

from offramp_model.bundle import WEIGHTS, Bundle, BundleError
from offramp_model.graphs import EARLIER, FEATURES, FOLDER, GRAPH_WEIGHTS, LOGITS, PIXELS, ROUTER, SURVIVORS, WHOLE
from offramp_model.routing import halting_rule
from offramp_server.engine.types import StageResult

if TYPE_CHECKING:
    from openvino import CompiledModel, Core, InferRequest, Model

OpenVinoPrecision = Literal["int8", "bf16", "f32"]
_NAMES: dict[OpenVinoPrecision, str] = {"int8": "int8", "bf16": "bfloat16", "f32": "float32"}

MAX_SHARES = 8
"""Of many cores each share gets several, so that latency does not grow with their number."""

BATCHES_A_SHARE = 2
"""While the rows of one are decided and handed over, which takes the interpreter's lock, the cores run the other."""

BATCH_STEP = 4
"""OpenVINO keeps what it prepares for every batch size that it meets, megabytes each: so it meets one and two frames, and
multiples of this."""


class OpenVinoBackend:
    """Implements engine.types.Backend.

    The features that a stage gives lie in memory that the same stage's next run writes over: whoever keeps rows copies them.
    """

    name = "openvino"
    batch_step, batches_a_share = BATCH_STEP, BATCHES_A_SHARE

    def __init__(self, bundle: Bundle, precision: OpenVinoPrecision, threads: int = 0, reason: str = "asked for") -> None:
        """`threads` run one forward pass; 0 leaves it to OpenVINO. Raises BundleError, or ImportError without openvino."""
        manifest = bundle.manifest
        self.device_description, self.reason = f"cpu, {_NAMES[precision]}", reason
        self.exits = manifest.network.exits
        self.input_size = manifest.network.input_size
        self.classes = manifest.network.classes
        self.rule = halting_rule(manifest.network, manifest.costs.ratios)
        self._mean_C11, self._std_C11 = (
            255 * np.array(values, np.float32)[:, None, None]
            for values in (manifest.preprocessing.mean, manifest.preprocessing.std)
        )
        folder = bundle.path / FOLDER / ("int8" if precision == "int8" else "float")
        tensors = load_file(bundle.path / WEIGHTS)
        # heads, routers and whatever else an int8 graph leaves in float are run in float32
        hint = {"INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32"}
        core = _openvino().Core()

        def load(name: str, *, of_floats: bool = False) -> _Compiled:
            path = folder / f"{name}.xml"
            try:
                return _compile(core, read_graph(core, path, tensors, of_floats=of_floats), hint, threads)
            except RuntimeError as error:
                raise BundleError(path, f"can't be run by OpenVINO ({str(error).strip().splitlines()[-1]})") from error

        with ThreadPoolExecutor(os.cpu_count()) as compilers:  # OpenVINO takes one core to compile a graph
            loading = [compilers.submit(load, f"stage{exit}") for exit in range(1, self.exits + 1)]
            loading += [compilers.submit(load, "stage1", of_floats=True), compilers.submit(load, WHOLE)]
        self._compiled = tuple(each.result() for each in loading)
        self._use([each.alone for each in self._compiled])

    def _use(self, models: Sequence[CompiledModel]) -> None:
        """Run these: the stages, the first of floats, and the whole."""
        *self._stages, self._first_of_floats, self._whole = map(_Request, models)

    def split(self) -> list[OpenVinoBackend]:
        """Two for each core, or for several where there are more than `MAX_SHARES`; none on a single one.

        A core that other work holds up does not hold up the rest then, as it does where all run one batch; and while one of
        its two waits for the interpreter, the other runs.
        """
        shares = []
        for models in zip(*(each.shares for each in self._compiled), strict=True):
            for _ in range(BATCHES_A_SHARE):
                share = copy(self)
                share._use(models)
                shares.append(share)
        return shares

    def prepare(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Stack uint8 (H, W, 3) images as they are: the graph normalises. float32 (3, H, W) ones become float32 pixels.

        Shape (N, H, W, 3).
        """
        batch = np.stack(images)
        if batch.dtype == np.uint8:
            return batch
        return np.ascontiguousarray((batch * self._std_C11 + self._mean_C11).transpose(0, 2, 3, 1))

    def take(self, features: np.ndarray, rows_S: np.ndarray) -> np.ndarray:
        """A copy of these rows."""
        taken: np.ndarray = features[rows_S]
        return taken

    def join(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """The rows of several as one."""
        return np.concatenate(parts)

    def run_stage(self, exit: int, features: np.ndarray, earlier_NEC: np.ndarray) -> StageResult:
        """Run one stage on (N, …) features; stage 1 takes what `prepare` gives, and no earlier logits."""
        if exit == 1:
            request = self._stages[0] if features.dtype == np.uint8 else self._first_of_floats
            outputs = request.run({PIXELS: features})
        else:
            outputs = self._stages[exit - 1].run({FEATURES: features, EARLIER: earlier_NEC})
        logits_NEC = outputs[LOGITS].copy()
        router_output = outputs[ROUTER].copy() if ROUTER in outputs else None
        return StageResult(outputs.get(SURVIVORS, logits_NEC), logits_NEC, router_output)

    def run_whole(self, pixels: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """Run the uncut graph on what `prepare` gives for uint8 images, for frames that go to the last exit anyway.

        Returns the class logits of every exit, shape (N, K, classes), and each router's output.
        """
        outputs = self._whole.run({PIXELS: pixels})
        routers = [outputs[f"{ROUTER}{exit}"].copy() for exit in range(1, self.exits) if f"{ROUTER}{exit}" in outputs]
        return outputs[LOGITS].copy(), routers


def openvino_capabilities() -> list[str]:
    """Number formats that OpenVINO finds this CPU to be fast in, such as INT8 and BF16."""
    capabilities: list[str] = _openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return capabilities


def _openvino() -> Any:
    """The library without its telemetry, which would tell its makers of every start."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # it then takes its silent stand-in
    import openvino

    return openvino


def read_graph(core: Core, path: Path, tensors: Mapping[str, np.ndarray], *, of_floats: bool = False) -> Model:
    """A graph with its weights: from the file beside it, and those that it names as inputs from the bundle's tensors.

    Pixels are uint8, or with `of_floats` float32. Raises RuntimeError where OpenVINO can't read it.
    """
    opset = _openvino().opset13
    model = core.read_model(path, path.with_name(GRAPH_WEIGHTS))
    for parameter in model.get_parameters():
        name = parameter.output(0).get_any_name()
        if name in tensors:
            constant = opset.constant(tensors[name].astype(np.float32))
            for reader in parameter.output(0).get_target_inputs():
                reader.replace_source_output(constant.output(0))
            model.remove_parameter(parameter)
        elif of_floats and name == PIXELS:
            parameter.set_element_type(_openvino().Type.f32)
    model.validate_nodes_and_infer_types()
    return model


@dataclass(frozen=True, slots=True)
class _Compiled:
    """One graph, for a batch on all cores and for batches on a share of them each."""

    alone: CompiledModel
    shares: list[CompiledModel]
    """Empty on a single core."""


def _compile(core: Core, model: Model, hint: Mapping[str, str], threads: int) -> _Compiled:
    wanted = {"INFERENCE_NUM_THREADS": threads} if threads else {}
    alone = core.compile_model(model, "CPU", {**hint, **wanted, "PERFORMANCE_HINT": "LATENCY"})
    cores = alone.get_property("INFERENCE_NUM_THREADS")
    count = min(cores, MAX_SHARES) if cores > 1 else 0
    # compiled for each share and not pinned: OpenVINO pins the first threads of every model to the same core
    share = {**hint, "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": cores // max(count, 1), "ENABLE_CPU_PINNING": False}
    return _Compiled(alone, [core.compile_model(model, "CPU", share) for _ in range(count)])


class _Request:
    """One graph that runs one batch at a time."""

    def __init__(self, model: CompiledModel) -> None:
        self._request: InferRequest = model.create_infer_request()
        self._outputs = [(port.get_any_name(), port) for port in self._request.model_outputs]
        self._tensor_type = _openvino().Tensor

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run on N rows of each input, where they lie if N is a size to run; the outputs are views of the request's memory."""
        count = len(next(iter(inputs.values())))
        size = count if count <= 2 else -(-count // BATCH_STEP) * BATCH_STEP
        rows = {name: _filled_up(array, size) for name, array in inputs.items()}  # they must outlive the run
        for name, array in rows.items():
            self._request.set_tensor(name, self._tensor_type(array, shared_memory=True))
        self._request.infer()
        return {name: self._request.get_tensor(port).data[:count] for name, port in self._outputs}


def _filled_up(rows: np.ndarray, size: int) -> np.ndarray:
    """The rows, with blank ones after them where there are fewer than `size`."""
    if len(rows) == size:
        return np.ascontiguousarray(rows)
    room = np.zeros((size, *rows.shape[1:]), rows.dtype)
    room[: len(rows)] = rows
    return room
