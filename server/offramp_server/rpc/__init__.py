"""The wire: protobuf in, domain types through, protobuf out."""
