"""The network, its files, and the predictor behind the port."""

import sys

# Importing OpenVINO imports this package, which posts to the internet from a process of its own; without it, OpenVINO takes
# its stub. It is set aside here, as this module runs before any other of the room with OpenVINO, in each process.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
