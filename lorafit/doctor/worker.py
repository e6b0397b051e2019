"""The process that tries probes: asked on its standard input, answering on a pipe."""

import json
import os
import sys
import warnings
from importlib import import_module

from lorafit.doctor.finding import Absent, Section


def serve(answers: int) -> None:
    """Answer until the input ends. answers: the descriptor to write to."""
    from lorafit import libraries

    libraries.settle(needs_hub=False)
    os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is asked of anybody
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        function, section, name, remedy = json.loads(line)
        with os.fdopen(os.dup(answers), "w", encoding="utf-8", buffering=1) as to:
            came_out = "works"
            try:
                module, _, attribute = function.partition(":")
                for found in getattr(import_module(module), attribute)(Section(section)):
                    to.write(json.dumps(found.as_dict()) + "\n")
            except Absent:
                came_out = "absent"
            except Exception as error:
                came_out = "fails"
                to.write(json.dumps(Section(section).failed(name, error, remedy).as_dict()) + "\n")
            to.write(json.dumps({"came_out": came_out}) + "\n")
