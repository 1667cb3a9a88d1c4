"""Print template.yaml as JSON, with anchors and short forms expanded, as checkov needs it."""

import json
import sys

from cfnlint.decode import decode  # type: ignore[import-untyped]

from local.stack import ROOT

template, faults = decode(str(ROOT / "template.yaml"))
if faults:
    sys.exit(str(faults))
print(json.dumps(template, indent=1, default=str))
