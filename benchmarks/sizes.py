"""Count models of the recipes from their configurations, for `flowward advise`: flowward/studies/shipped/sizes.yaml.

    python benchmarks/sizes.py [MODEL ...]

Each takes about two minutes on one core; no weights and no GPU are needed.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import full_size
import yaml

from flowward.studies import sizes
from flowward.system import tables

MODELS = {
    "stabilityai/stable-diffusion-3.5-medium": "sd3.5-medium",
    "black-forest-labs/FLUX.1-dev": "flux.1-dev",
}
HEAD = (
    "# Memory in GB by batch, and TFLOP of a network pass: benchmarks/sizes.py, from configurations, with the code of\n"
    "# `flowward memory`; LoRA of rank 32, bf16. `each` is per image sampled, or per network pass in training.\n"
)


def main() -> None:
    asked = sys.argv[1:] or list(MODELS)
    found = tables.load(sizes.SHIPPED) if sizes.SHIPPED.is_file() else {}
    for model in asked:
        with tempfile.TemporaryDirectory() as folder:
            full_size.configurations(MODELS[model], Path(folder))
            found[model] = sizes.counted(folder).written
        sizes.SHIPPED.write_text(HEAD + yaml.safe_dump(found, sort_keys=False, width=120), "utf-8")


if __name__ == "__main__":
    main()
