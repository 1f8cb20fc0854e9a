"""Networks, model files, and predictors that implement `emseg_core.ports.Predictor`."""

import sys

# OpenVINO imports this telemetry package, which sends usage data from a process of its own; without it, OpenVINO falls back
# to a stub. It is blocked here because this module runs, in every process, before any that imports OpenVINO.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
