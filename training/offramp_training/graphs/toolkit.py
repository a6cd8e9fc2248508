"""OpenVINO and NNCF, imported without their telemetry."""

from __future__ import annotations

import sys

# both would report each import and use to their makers; where this package can't be imported they take a silent stand-in
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import nncf  # noqa: E402
import openvino  # noqa: E402
from openvino import opset13 as opset  # noqa: E402

nncf.set_log_level(40)  # errors alone

__all__ = ["nncf", "openvino", "opset"]
