"""`python -m tests.host windows --clips 32`: long clips in the host's windows and in ours.

Clips of the built-in model from the evaluation's sentences, three times as long as a window, the same noise
in every row, by 10 steps of dpmpp_2m under guidance of 3: with lcm the first noise counts for little. In the
host's windows whole predictions are averaged, in FreeNoise Windows what the layers over time give.
"""

import argparse
import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

spec = importlib.util.spec_from_file_location("conftest", Path(__file__).with_name("conftest.py"))
conftest = importlib.util.module_from_spec(spec)
spec.loader.exec_module(conftest)  # host and pack become importable
sys.path.append(str(conftest.ROOT))  # behind the host, whose modules have names of ours

import comfy.utils  # noqa: E402
import torch  # noqa: E402
from comfy_extras.nodes_context_windows import ContextWindowsManualNode  # noqa: E402
from univid_pack.nodes.decode import UniVidDecodeVideo  # noqa: E402
from univid_pack.nodes.encode import UniVidEncodeDualPrompt  # noqa: E402
from univid_pack.nodes.host.model import profile_of  # noqa: E402
from univid_pack.nodes.host.sampling import OWN, sample  # noqa: E402
from univid_pack.nodes.load import UniVidLoad  # noqa: E402
from univid_pack.nodes.longer import UniVidFreeNoise  # noqa: E402
from univid_pack.univid.guidance import Joint  # noqa: E402

from training.tiny.evaluate import ROWS, conditions  # noqa: E402
from training.tiny.scorer import read  # noqa: E402
from training.tiny.table import mean  # noqa: E402
from univid.video import to_uint8  # noqa: E402

ROW, FRAMES, WINDOW, STRIDE = ROWS["T2V, seen"], 36, 12, 4


def in_the_hosts(model, free_noise: bool, fix: bool):
    """Windows of the host's node, with its first frame before each or without."""
    return ContextWindowsManualNode.execute(
        model, WINDOW, WINDOW - STRIDE, "standard_static", 1, False, "pyramid", 0, free_noise,
        causal_window_fix=fix,
    ).result[0]  # fmt: skip


WINDOWS = {
    "as it is": lambda model: model,
    "the host's static windows": lambda model: in_the_hosts(model, False, False),
    "the same with its freenoise": lambda model: in_the_hosts(model, True, False),
    "the same with causal_window_fix": lambda model: in_the_hosts(model, True, True),
    "FreeNoise Windows, each frame its noise": lambda m: UniVidFreeNoise.execute(m, WINDOW, STRIDE, False)[0],
    "FreeNoise Windows": lambda model: UniVidFreeNoise.execute(model, WINDOW, STRIDE, True)[0],
}


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=32, metavar="N")
    clips = parser.parse_args().clips
    comfy.utils.PROGRESS_BAR_ENABLED = False
    model, clip, _, vae = UniVidLoad.execute("built-in", "fp32").result
    asked = conditions(replace(ROW, frames=FRAMES), range(clips), profile_of(model))
    print(f"{clips} clips of {FRAMES} frames, windows of {WINDOW}, one every {STRIDE} frames")
    print("| windows | found | consistency |\n| --- | ---: | ---: |")
    for name, windowed in WINDOWS.items():
        found = []
        for index, condition in enumerate(asked):
            positive, negative = UniVidEncodeDualPrompt.execute(clip, condition.text.caption, "").result
            latent, _ = sample(
                windowed(model), positive, negative, {"samples": torch.zeros(FRAMES, 4, 8, 8)},
                seed=ROW.seed + index, steps=10, sampler_name="dpmpp_2m", scheduler=OWN, guider=Joint(3.0),
            )  # fmt: skip
            images = UniVidDecodeVideo.execute(latent, vae, 8.0).result[0]
            found.append(read(to_uint8(images.movedim(3, 0)[None] * 2 - 1)))
        steady = mean([reading.steadiness for reading in found])
        share = sum(reading.found for reading in found) / len(found)
        figures = " ".join(f"{100 * steady[key]:.1f}" for key in ("low", "high"))
        print(f"| {name} | {100 * share:.0f} | {100 * steady['value']:.1f} [{figures}] |", flush=True)


if __name__ == "__main__":
    main()
