"""What tools ask about a model: its tensors, its configuration, what it has done."""

from __future__ import annotations

from collections.abc import Sequence

from inference import grpc_service_pb2 as oip
from inference import model_config_pb2
from offramp_server.rpc.models import ServedModel
from offramp_server.rpc.oip.tensors import INPUT, INPUT_FORMS, list_outputs

CONFIG_TYPES = {
    "BYTES": model_config_pb2.TYPE_STRING,
    "FP32": model_config_pb2.TYPE_FP32,
    "INT32": model_config_pb2.TYPE_INT32,
    "INT64": model_config_pb2.TYPE_INT64,
}
"""Triton's configuration has names of its own for the types of tensors."""


def write_metadata(model: ServedModel, versions: Sequence[str]) -> oip.ModelMetadataResponse:
    """Name, versions and tensors. One form of the input stands here, since tools send every tensor that they read about."""
    size = model.manifest.network.input_size
    tensor = oip.ModelMetadataResponse.TensorMetadata
    return oip.ModelMetadataResponse(
        name=model.name,
        versions=versions,
        platform=_platform(model),
        inputs=[tensor(name=INPUT, datatype="UINT8", shape=(-1, size, size, 3))],
        outputs=[tensor(name=spec.name, datatype=spec.datatype, shape=(-1, *spec.dims)) for spec in list_outputs(model.manifest)],
    )


def write_config(model: ServedModel, max_frames: int) -> model_config_pb2.ModelConfig:
    """The same and more in Triton's terms; `max_frames` is the most pictures of one request."""
    manifest, size = model.manifest, model.manifest.network.input_size
    config = model_config_pb2.ModelConfig(
        name=model.name,
        platform=_platform(model),
        backend=model.backend,
        max_batch_size=max_frames,
        input=[
            model_config_pb2.ModelInput(
                name=INPUT,
                data_type=model_config_pb2.TYPE_UINT8,
                format=model_config_pb2.ModelInput.FORMAT_NHWC,
                dims=(size, size, 3),
            )
        ],
        output=[
            model_config_pb2.ModelOutput(name=spec.name, data_type=CONFIG_TYPES[spec.datatype], dims=spec.dims)
            for spec in list_outputs(manifest)
        ],
        version_policy=model_config_pb2.ModelVersionPolicy(
            specific=model_config_pb2.ModelVersionPolicy.Specific(versions=[manifest.version])
        ),
        dynamic_batching=model_config_pb2.ModelDynamicBatching(preserve_ordering=True),
        model_transaction_policy=model_config_pb2.ModelTransactionPolicy(decoupled=False),
    )
    facts = {
        "device": model.device,
        "exits": str(manifest.network.exits),
        "cost_ratios": ",".join(f"{ratio:.6g}" for ratio in manifest.costs.ratios),
        "full_macs": str(manifest.costs.full_macs),
        "labels": ",".join(manifest.labels),
        "input_forms": INPUT_FORMS,
    }
    for name, value in facts.items():
        config.parameters[name].string_value = value
    return config


def write_statistics(model: ServedModel) -> oip.ModelStatistics:
    """Counters since the version was loaded, of every service together."""
    counted = model.statistics
    return oip.ModelStatistics(
        name=model.name,
        version=model.version,
        last_inference=counted.last_at_ms,
        inference_count=counted.frames,
        execution_count=model.engine.batches_entered,
        inference_stats=oip.InferStatistics(
            success=oip.StatisticDuration(count=counted.requests, ns=counted.total_ns),
            fail=oip.StatisticDuration(count=counted.failures, ns=counted.failed_ns),
            queue=oip.StatisticDuration(count=counted.requests, ns=counted.queue_ns),
            compute_input=oip.StatisticDuration(count=counted.requests, ns=counted.input_ns),
            compute_infer=oip.StatisticDuration(count=counted.requests, ns=counted.compute_ns),
            compute_output=oip.StatisticDuration(count=counted.requests, ns=counted.output_ns),
            cache_hit=oip.StatisticDuration(),
            cache_miss=oip.StatisticDuration(),
        ),
    )


def _platform(model: ServedModel) -> str:
    return f"offramp_{model.backend}"
