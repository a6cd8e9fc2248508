"""int8 after training: NNCF's quantisation of the backbone; heads and routers, hardly any of the work, stay in float."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from offramp_model.graphs import SURVIVORS
from offramp_training.graphs.cut import ancestors
from offramp_training.graphs.toolkit import nncf, openvino, opset

_HEAVY = ("Convolution", "GroupConvolution", "MatMul")
_WITHOUT_WORK = ("Constant", "Parameter", "Result")
_LANES = 16


def quantise(
    model: openvino.Model, calibration_NHWC: np.ndarray, exits: int, float_stages: Collection[int] = ()
) -> openvino.Model:
    """The whole graph with int8 weights and fake-quantised activations; `float_stages` (1…K) stay as they are.

    Weights get seven bits of the eight, so that processors without VNNI, whose int8 products are summed in pairs of 16 bits, do
    not overflow: the same numbers everywhere. Biases are corrected in the slower of NNCF's two ways: the fast one made exit 1
    of a trained ResNet-18 worse than none at all. Activations get the range, of those of their histogram, that rounds
    them least: with the mean of the largest values the later exits' logits were off by half as much again, up to twice.
    """
    _sidestep_strided_pointwise(model)
    data = nncf.Dataset([image[None] for image in calibration_NHWC])
    parameters = nncf.AdvancedQuantizationParameters(
        overflow_fix=nncf.OverflowFix.ENABLE,
        activations_range_estimator_params=nncf.quantization.range_estimator.RangeEstimatorParametersSet.HISTOGRAM,
    )
    ignored = nncf.IgnoredScope(names=_left_alone(model, exits, float_stages), validate=False)
    quantised: openvino.Model = nncf.quantize(
        model,
        data,
        subset_size=len(calibration_NHWC),
        fast_bias_correction=False,
        ignored_scope=ignored,
        advanced_parameters=parameters,
    )
    return quantised


def _sidestep_strided_pointwise(model: openvino.Model) -> None:
    """Give 1×1 convolutions with strides, where their channels are no multiple of 16, every other pixel and no strides.

    OpenVINO 2026.4's int8 kernel for them (AVX2) has threads that write over each other: another answer at every run.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Convolution":
            continue
        strides, (_, channels, *kernel) = list(node.get_attributes()["strides"]), list(node.get_input_shape(1))
        if any(size > 1 for size in kernel) or all(stride == 1 for stride in strides) or channels % _LANES == 0:
            continue
        kept = opset.max_pool(node.input_value(0), strides, [1, 1], [0, 0], [0, 0], [1, 1])
        convolution = opset.convolution(kept.output(0), node.input_value(1), [1, 1], [0, 0], [0, 0], [1, 1])
        for made in (kept, convolution):
            made.set_friendly_name(f"{node.get_friendly_name()}/{made.get_type_name()}")
        node.output(0).replace(convolution.output(0))
    model.validate_nodes_and_infer_types()


def _left_alone(model: openvino.Model, exits: int, float_stages: Collection[int]) -> list[str]:
    """Names of nodes that are not quantised: normalisation, heads and routers, and the stages that stay in float.

    The first convolution stays in float too: it has hardly any work, and the first exit's error is far smaller without its own.
    """
    backbone = {node.get_friendly_name() for node in ancestors([model.output(f"{SURVIVORS}{exits}").get_node()])}
    in_float = tuple(f"stage{stage}/" for stage in float_stages)
    after_heavy: set[str] = set()
    left = []
    for node in model.get_ordered_ops():
        name, before = node.get_friendly_name(), {value.get_node().get_friendly_name() for value in node.input_values()}
        quantised = bool(before & after_heavy) and name in backbone and not name.startswith(in_float)
        if node.get_type_name() in _HEAVY or before & after_heavy:
            after_heavy.add(name)
        if node.get_type_name() not in _WITHOUT_WORK and not quantised:
            left.append(name)
    return left
