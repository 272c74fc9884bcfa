"""`python bench.py`: what the host that UNIVID_HOST names adds to the library's own sampling time.

Both sample the same clip with the same random weights, in turns; the last line is the ratio of the medians.
"""

import importlib.util
import statistics
import time
from pathlib import Path

spec = importlib.util.spec_from_file_location("conftest", Path(__file__).with_name("conftest.py"))
spec.loader.exec_module(importlib.util.module_from_spec(spec))  # host and pack become importable

import torch  # noqa: E402
from host_tests.both import expected, run  # noqa: E402
from host_tests.random_model import write  # noqa: E402
from univid_pack.nodes.host.model import load_model  # noqa: E402
from univid_pack.univid.checkpoints import load  # noqa: E402

RUNS, CHANNELS, FRAMES, SIZE, STEPS = 5, 64, 12, 16, 4

torch.set_num_threads(2)
path = write(Path.cwd(), CHANNELS)
model, library = load_model(path, "fp32"), load(path, dtype=torch.float32)
print(
    f"width {CHANNELS}, {FRAMES} frames of {8 * SIZE} x {8 * SIZE}, {STEPS} steps of euler, fp32, 2 threads"
)
ratios = []
for guidance in ("joint", "separate"):
    latent = {"samples": torch.zeros(FRAMES, 4, SIZE, SIZE)}
    cases = {
        "host": lambda g=guidance, x=latent: run(model, g, latent=x, steps=STEPS),
        "library": lambda g=guidance: expected(library, g, frames=FRAMES, size=SIZE, steps=STEPS),
    }
    seconds = {name: [] for name in cases}
    for number in range(RUNS + 1):
        for name, case in cases.items():
            started = time.perf_counter()
            with torch.inference_mode():
                case()
            if number:  # the first run of each warms up
                seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratios.append(medians["host"] / medians["library"])
    print(f"{guidance:10} host {medians['host']:.2f} s, library {medians['library']:.2f} s: {ratios[-1]:.3f}")
print(f"ratio {max(ratios):.3f}")
