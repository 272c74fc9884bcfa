"""One dimension of VBench, run by the Python of VBench's own environment and by nothing here.

Its argument is a file of JSON: device, prompts (VBench's list), out, videos, dimension, mode, and for videos
of other prompts by_name, the prompt of each.
"""

import json
import sys
from pathlib import Path


def main(file: str) -> None:
    import torch
    from vbench import VBench

    asked = json.loads(Path(file).read_text(encoding="utf-8"))
    VBench(torch.device(asked["device"]), asked["prompts"], asked["out"]).evaluate(
        asked["videos"],
        asked["dimension"],
        prompt_list=asked["by_name"],
        dimension_list=[asked["dimension"]],
        local=True,  # weights of its folder, where it would fetch some anew
        mode=asked["mode"],
    )


if __name__ == "__main__":
    main(sys.argv[1])
