"""Admission, stage queues, batching and exit decisions; knows neither gRPC nor protobuf."""
