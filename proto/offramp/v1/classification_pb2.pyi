from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Policy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    POLICY_UNSPECIFIED: _ClassVar[Policy]
    POLICY_ROUTER: _ClassVar[Policy]
    POLICY_ENTROPY: _ClassVar[Policy]
    POLICY_CONFIDENCE: _ClassVar[Policy]
    POLICY_FIXED: _ClassVar[Policy]

class ExitReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EXIT_REASON_UNSPECIFIED: _ClassVar[ExitReason]
    EXIT_REASON_POLICY: _ClassVar[ExitReason]
    EXIT_REASON_LAST_EXIT: _ClassVar[ExitReason]
    EXIT_REASON_MAX_EXIT: _ClassVar[ExitReason]
    EXIT_REASON_MAX_COST: _ClassVar[ExitReason]
    EXIT_REASON_DEADLINE: _ClassVar[ExitReason]
POLICY_UNSPECIFIED: Policy
POLICY_ROUTER: Policy
POLICY_ENTROPY: Policy
POLICY_CONFIDENCE: Policy
POLICY_FIXED: Policy
EXIT_REASON_UNSPECIFIED: ExitReason
EXIT_REASON_POLICY: ExitReason
EXIT_REASON_LAST_EXIT: ExitReason
EXIT_REASON_MAX_EXIT: ExitReason
EXIT_REASON_MAX_COST: ExitReason
EXIT_REASON_DEADLINE: ExitReason

class RoutingControl(_message.Message):
    __slots__ = ("policy", "threshold", "exit_thresholds", "min_exit", "max_exit", "max_cost", "max_mean_cost", "max_accuracy_drop", "confidence", "max_latency_ms", "allow_early_answer", "allow_degrade")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    LAMBDA_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    EXIT_THRESHOLDS_FIELD_NUMBER: _ClassVar[int]
    MIN_EXIT_FIELD_NUMBER: _ClassVar[int]
    MAX_EXIT_FIELD_NUMBER: _ClassVar[int]
    MAX_COST_FIELD_NUMBER: _ClassVar[int]
    MAX_MEAN_COST_FIELD_NUMBER: _ClassVar[int]
    MAX_ACCURACY_DROP_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    MAX_LATENCY_MS_FIELD_NUMBER: _ClassVar[int]
    ALLOW_EARLY_ANSWER_FIELD_NUMBER: _ClassVar[int]
    ALLOW_DEGRADE_FIELD_NUMBER: _ClassVar[int]
    policy: Policy
    threshold: float
    exit_thresholds: _containers.RepeatedScalarFieldContainer[float]
    min_exit: int
    max_exit: int
    max_cost: float
    max_mean_cost: float
    max_accuracy_drop: float
    confidence: float
    max_latency_ms: int
    allow_early_answer: bool
    allow_degrade: bool
    def __init__(self, policy: _Optional[_Union[Policy, str]] = ..., threshold: _Optional[float] = ..., exit_thresholds: _Optional[_Iterable[float]] = ..., min_exit: _Optional[int] = ..., max_exit: _Optional[int] = ..., max_cost: _Optional[float] = ..., max_mean_cost: _Optional[float] = ..., max_accuracy_drop: _Optional[float] = ..., confidence: _Optional[float] = ..., max_latency_ms: _Optional[int] = ..., allow_early_answer: _Optional[bool] = ..., allow_degrade: _Optional[bool] = ..., **kwargs) -> None: ...

class RawImage(_message.Message):
    __slots__ = ("data", "height", "width")
    DATA_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    height: int
    width: int
    def __init__(self, data: _Optional[bytes] = ..., height: _Optional[int] = ..., width: _Optional[int] = ...) -> None: ...

class FloatTensor(_message.Message):
    __slots__ = ("data", "shape")
    DATA_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, data: _Optional[bytes] = ..., shape: _Optional[_Iterable[int]] = ...) -> None: ...

class Frame(_message.Message):
    __slots__ = ("frame_id", "rgb8", "encoded", "tensor", "control", "timestamp_us")
    FRAME_ID_FIELD_NUMBER: _ClassVar[int]
    RGB8_FIELD_NUMBER: _ClassVar[int]
    ENCODED_FIELD_NUMBER: _ClassVar[int]
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    CONTROL_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_US_FIELD_NUMBER: _ClassVar[int]
    frame_id: int
    rgb8: RawImage
    encoded: bytes
    tensor: FloatTensor
    control: RoutingControl
    timestamp_us: int
    def __init__(self, frame_id: _Optional[int] = ..., rgb8: _Optional[_Union[RawImage, _Mapping]] = ..., encoded: _Optional[bytes] = ..., tensor: _Optional[_Union[FloatTensor, _Mapping]] = ..., control: _Optional[_Union[RoutingControl, _Mapping]] = ..., timestamp_us: _Optional[int] = ...) -> None: ...

class FrameBatch(_message.Message):
    __slots__ = ("frames",)
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    frames: _containers.RepeatedCompositeFieldContainer[Frame]
    def __init__(self, frames: _Optional[_Iterable[_Union[Frame, _Mapping]]] = ...) -> None: ...

class StreamConfig(_message.Message):
    __slots__ = ("model", "version", "control", "ordered", "top_k", "batch_results")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CONTROL_FIELD_NUMBER: _ClassVar[int]
    ORDERED_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    BATCH_RESULTS_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    control: RoutingControl
    ordered: bool
    top_k: int
    batch_results: bool
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., control: _Optional[_Union[RoutingControl, _Mapping]] = ..., ordered: _Optional[bool] = ..., top_k: _Optional[int] = ..., batch_results: _Optional[bool] = ...) -> None: ...

class ClassifyRequest(_message.Message):
    __slots__ = ("model", "version", "frame", "top_k")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    frame: Frame
    top_k: int
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., frame: _Optional[_Union[Frame, _Mapping]] = ..., top_k: _Optional[int] = ...) -> None: ...

class ClassifyResponse(_message.Message):
    __slots__ = ("result",)
    RESULT_FIELD_NUMBER: _ClassVar[int]
    result: FrameResult
    def __init__(self, result: _Optional[_Union[FrameResult, _Mapping]] = ...) -> None: ...

class StreamClassifyRequest(_message.Message):
    __slots__ = ("config", "frame", "batch")
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    config: StreamConfig
    frame: Frame
    batch: FrameBatch
    def __init__(self, config: _Optional[_Union[StreamConfig, _Mapping]] = ..., frame: _Optional[_Union[Frame, _Mapping]] = ..., batch: _Optional[_Union[FrameBatch, _Mapping]] = ...) -> None: ...

class StreamClassifyResponse(_message.Message):
    __slots__ = ("result", "status", "results")
    RESULT_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    result: FrameResult
    status: StreamStatus
    results: FrameResultBatch
    def __init__(self, result: _Optional[_Union[FrameResult, _Mapping]] = ..., status: _Optional[_Union[StreamStatus, _Mapping]] = ..., results: _Optional[_Union[FrameResultBatch, _Mapping]] = ...) -> None: ...

class StreamStatus(_message.Message):
    __slots__ = ("state", "model", "version", "control", "error")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[StreamStatus.State]
        STATE_CONFIGURED: _ClassVar[StreamStatus.State]
        STATE_REFUSED: _ClassVar[StreamStatus.State]
        STATE_DRAINING: _ClassVar[StreamStatus.State]
        STATE_MOVED: _ClassVar[StreamStatus.State]
    STATE_UNSPECIFIED: StreamStatus.State
    STATE_CONFIGURED: StreamStatus.State
    STATE_REFUSED: StreamStatus.State
    STATE_DRAINING: StreamStatus.State
    STATE_MOVED: StreamStatus.State
    STATE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CONTROL_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    state: StreamStatus.State
    model: str
    version: str
    control: RoutingControl
    error: Error
    def __init__(self, state: _Optional[_Union[StreamStatus.State, str]] = ..., model: _Optional[str] = ..., version: _Optional[str] = ..., control: _Optional[_Union[RoutingControl, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("code", "message", "field", "retry_after_ms")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    field: str
    retry_after_ms: int
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ..., field: _Optional[str] = ..., retry_after_ms: _Optional[int] = ...) -> None: ...

class FrameResult(_message.Message):
    __slots__ = ("frame_id", "timestamp_us", "classification", "error")
    FRAME_ID_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_US_FIELD_NUMBER: _ClassVar[int]
    CLASSIFICATION_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    frame_id: int
    timestamp_us: int
    classification: Classification
    error: Error
    def __init__(self, frame_id: _Optional[int] = ..., timestamp_us: _Optional[int] = ..., classification: _Optional[_Union[Classification, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

class FrameResultBatch(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[FrameResult]
    def __init__(self, results: _Optional[_Iterable[_Union[FrameResult, _Mapping]]] = ...) -> None: ...

class ClassProbability(_message.Message):
    __slots__ = ("label", "name", "probability")
    LABEL_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    label: int
    name: str
    probability: float
    def __init__(self, label: _Optional[int] = ..., name: _Optional[str] = ..., probability: _Optional[float] = ...) -> None: ...

class Classification(_message.Message):
    __slots__ = ("top", "exit", "reason", "halting_probabilities", "cost_ratio", "cost_macs", "queue_ms", "compute_ms", "model", "version", "control", "degraded")
    TOP_FIELD_NUMBER: _ClassVar[int]
    EXIT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    HALTING_PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    COST_RATIO_FIELD_NUMBER: _ClassVar[int]
    COST_MACS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_MS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CONTROL_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_FIELD_NUMBER: _ClassVar[int]
    top: _containers.RepeatedCompositeFieldContainer[ClassProbability]
    exit: int
    reason: ExitReason
    halting_probabilities: _containers.RepeatedScalarFieldContainer[float]
    cost_ratio: float
    cost_macs: int
    queue_ms: float
    compute_ms: float
    model: str
    version: str
    control: RoutingControl
    degraded: bool
    def __init__(self, top: _Optional[_Iterable[_Union[ClassProbability, _Mapping]]] = ..., exit: _Optional[int] = ..., reason: _Optional[_Union[ExitReason, str]] = ..., halting_probabilities: _Optional[_Iterable[float]] = ..., cost_ratio: _Optional[float] = ..., cost_macs: _Optional[int] = ..., queue_ms: _Optional[float] = ..., compute_ms: _Optional[float] = ..., model: _Optional[str] = ..., version: _Optional[str] = ..., control: _Optional[_Union[RoutingControl, _Mapping]] = ..., degraded: _Optional[bool] = ...) -> None: ...
