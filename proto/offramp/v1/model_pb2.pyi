from offramp.v1 import classification_pb2 as _classification_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[ModelSummary]
    def __init__(self, models: _Optional[_Iterable[_Union[ModelSummary, _Mapping]]] = ...) -> None: ...

class ModelSummary(_message.Message):
    __slots__ = ("name", "version", "is_default", "exits", "classes", "frames_classified")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    IS_DEFAULT_FIELD_NUMBER: _ClassVar[int]
    EXITS_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    FRAMES_CLASSIFIED_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    is_default: bool
    exits: int
    classes: int
    frames_classified: int
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., is_default: _Optional[bool] = ..., exits: _Optional[int] = ..., classes: _Optional[int] = ..., frames_classified: _Optional[int] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("model", "version")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: Model
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "version", "labels", "input_height", "input_width", "exits", "full_macs", "router_lambdas", "default_control", "default_thresholds", "operating_points", "backend", "device", "full_accuracy", "data_note", "frontier", "backend_reason")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    INPUT_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    INPUT_WIDTH_FIELD_NUMBER: _ClassVar[int]
    EXITS_FIELD_NUMBER: _ClassVar[int]
    FULL_MACS_FIELD_NUMBER: _ClassVar[int]
    ROUTER_LAMBDAS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_CONTROL_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_THRESHOLDS_FIELD_NUMBER: _ClassVar[int]
    OPERATING_POINTS_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    FULL_ACCURACY_FIELD_NUMBER: _ClassVar[int]
    DATA_NOTE_FIELD_NUMBER: _ClassVar[int]
    FRONTIER_FIELD_NUMBER: _ClassVar[int]
    BACKEND_REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    labels: _containers.RepeatedScalarFieldContainer[str]
    input_height: int
    input_width: int
    exits: _containers.RepeatedCompositeFieldContainer[Exit]
    full_macs: int
    router_lambdas: _containers.RepeatedScalarFieldContainer[float]
    default_control: _classification_pb2.RoutingControl
    default_thresholds: _containers.RepeatedCompositeFieldContainer[PolicyThreshold]
    operating_points: _containers.RepeatedCompositeFieldContainer[OperatingPoint]
    backend: str
    device: str
    full_accuracy: float
    data_note: str
    frontier: Frontier
    backend_reason: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., labels: _Optional[_Iterable[str]] = ..., input_height: _Optional[int] = ..., input_width: _Optional[int] = ..., exits: _Optional[_Iterable[_Union[Exit, _Mapping]]] = ..., full_macs: _Optional[int] = ..., router_lambdas: _Optional[_Iterable[float]] = ..., default_control: _Optional[_Union[_classification_pb2.RoutingControl, _Mapping]] = ..., default_thresholds: _Optional[_Iterable[_Union[PolicyThreshold, _Mapping]]] = ..., operating_points: _Optional[_Iterable[_Union[OperatingPoint, _Mapping]]] = ..., backend: _Optional[str] = ..., device: _Optional[str] = ..., full_accuracy: _Optional[float] = ..., data_note: _Optional[str] = ..., frontier: _Optional[_Union[Frontier, _Mapping]] = ..., backend_reason: _Optional[str] = ...) -> None: ...

class Exit(_message.Message):
    __slots__ = ("exit", "macs", "cost_ratio", "nominal_cost", "accuracy")
    EXIT_FIELD_NUMBER: _ClassVar[int]
    MACS_FIELD_NUMBER: _ClassVar[int]
    COST_RATIO_FIELD_NUMBER: _ClassVar[int]
    NOMINAL_COST_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_FIELD_NUMBER: _ClassVar[int]
    exit: int
    macs: int
    cost_ratio: float
    nominal_cost: float
    accuracy: float
    def __init__(self, exit: _Optional[int] = ..., macs: _Optional[int] = ..., cost_ratio: _Optional[float] = ..., nominal_cost: _Optional[float] = ..., accuracy: _Optional[float] = ...) -> None: ...

class PolicyThreshold(_message.Message):
    __slots__ = ("policy", "threshold")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    policy: _classification_pb2.Policy
    threshold: float
    def __init__(self, policy: _Optional[_Union[_classification_pb2.Policy, str]] = ..., threshold: _Optional[float] = ...) -> None: ...

class OperatingPoint(_message.Message):
    __slots__ = ("control", "accuracy", "mean_cost", "exit_fractions")
    CONTROL_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_FIELD_NUMBER: _ClassVar[int]
    MEAN_COST_FIELD_NUMBER: _ClassVar[int]
    EXIT_FRACTIONS_FIELD_NUMBER: _ClassVar[int]
    control: _classification_pb2.RoutingControl
    accuracy: float
    mean_cost: float
    exit_fractions: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, control: _Optional[_Union[_classification_pb2.RoutingControl, _Mapping]] = ..., accuracy: _Optional[float] = ..., mean_cost: _Optional[float] = ..., exit_fractions: _Optional[_Iterable[float]] = ...) -> None: ...

class Frontier(_message.Message):
    __slots__ = ("points", "frames")
    POINTS_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    points: _containers.RepeatedCompositeFieldContainer[FrontierPoint]
    frames: int
    def __init__(self, points: _Optional[_Iterable[_Union[FrontierPoint, _Mapping]]] = ..., frames: _Optional[int] = ...) -> None: ...

class FrontierPoint(_message.Message):
    __slots__ = ("mean_cost", "accuracy", "exit_fractions", "losses")
    LAMBDA_FIELD_NUMBER: _ClassVar[int]
    MEAN_COST_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_FIELD_NUMBER: _ClassVar[int]
    EXIT_FRACTIONS_FIELD_NUMBER: _ClassVar[int]
    LOSSES_FIELD_NUMBER: _ClassVar[int]
    mean_cost: float
    accuracy: float
    exit_fractions: _containers.RepeatedScalarFieldContainer[float]
    losses: int
    def __init__(self, mean_cost: _Optional[float] = ..., accuracy: _Optional[float] = ..., exit_fractions: _Optional[_Iterable[float]] = ..., losses: _Optional[int] = ..., **kwargs) -> None: ...
