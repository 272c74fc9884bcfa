"""`python -m tests.gpu.child SECTION --results FILE`: one section, in this process, for the runner."""

import argparse
import importlib
import json
import sys
from pathlib import Path

import torch

from .section import Lacking, Section

LACKING = 3  # exit status where this machine lacks what the section needs
WRONG = 4  # where it ran to its end and something was not right; Python's own 1 is a crash


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("section")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--results", type=Path, required=True)
    args = parser.parse_args(argv)
    section = Section(args.section, torch.device(args.device), args.small, args.results)
    torch.manual_seed(0)
    if section.device.type == "cpu":
        torch.set_num_threads(1)  # networks as small gain nothing from more
    try:
        importlib.import_module(f".run_{args.section}", __package__).run(section)
    except Lacking as lacking:
        with args.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": "lacks", "what": str(lacking)}) + "\n")
        return LACKING
    except Exception as error:
        section.fails("the section", error)
        raise
    return WRONG if section.failed else 0


if __name__ == "__main__":
    sys.exit(main())
