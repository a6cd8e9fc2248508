"""Networks as OpenVINO graphs: converted, quantised, cut into stages, written to files (docs/adr/0008)."""
