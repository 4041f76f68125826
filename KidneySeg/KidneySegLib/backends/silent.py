"""OpenVINO, imported so that it tells nobody.

``import openvino`` by itself opens a connection to Google Analytics, by the package
``openvino_telemetry``, unless the user has opted out of that. Where that package is not installed,
OpenVINO uses a stand-in that tells nothing; so it is taken for missing here.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import cast

_TELEMETRY = "openvino_telemetry"

_before = sys.modules.get(_TELEMETRY)
sys.modules[_TELEMETRY] = cast(ModuleType, None)  # Python's own way to say: there is no such module
try:
    import openvino
finally:
    del sys.modules[_TELEMETRY]
    if _before is not None:
        sys.modules[_TELEMETRY] = _before

__all__ = ["openvino"]
