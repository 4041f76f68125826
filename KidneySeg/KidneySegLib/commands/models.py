"""``kidneyseg models``: what there is to segment with, and what OpenVINO needs of it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

NAME = "models"
HELP = "list the models that are there"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="as JSON, with their cards")
    parser.add_argument(
        "--add-onnx",
        type=Path,
        metavar="FOLDER",
        help="write the ONNX file, by which OpenVINO runs a model, into its folder",
    )


def run(options: argparse.Namespace) -> int:
    from KidneySegLib.modelplaces import DEFAULT_MODEL, list_models
    from KidneySegLib.modelsaving import add_onnx

    if options.add_onnx is not None:
        model = add_onnx(options.add_onnx)
        print(f"{model.name} {model.version} in {model.folder} has its ONNX file now.")
        return 0

    models, refused = list_models()
    if options.json:
        entries = [
            {
                "name": model.name,
                "version": model.version,
                "folder": str(model.folder),
                "default": model.name == DEFAULT_MODEL,
                **model.card,
            }
            for model in models
        ]
        print(json.dumps({"models": entries, "refused": refused}, indent=2, ensure_ascii=False))
        return 0
    for model in models:
        mark = " (default)" if model.name == DEFAULT_MODEL else ""
        print(f"{model.name} {model.version}{mark}\n  {model.folder}")
        for key in ("description", "licence"):
            if key in model.card:
                print(f"  {model.card[key]}")
    if not models:
        print("No model is installed.")
    for reason in refused:
        print(f"refused: {reason}", file=sys.stderr)
    return 0
