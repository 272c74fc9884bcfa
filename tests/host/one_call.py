"""`python one_call.py CHECKPOINT GUIDER FRAMES SIZE`: what one call of the model takes, as JSON in bytes.

A process of its own, whose memory nothing else touches (Linux). UNIVID_HOST names the ComfyUI.
"""

import ctypes
import importlib.util
import json
import re
import sys
from pathlib import Path

spec = importlib.util.spec_from_file_location("conftest", Path(__file__).with_name("conftest.py"))
spec.loader.exec_module(importlib.util.module_from_spec(spec))  # host and pack become importable

import comfy.samplers  # noqa: E402
import torch  # noqa: E402
from univid_pack.nodes.host.guider import UniVidGuider  # noqa: E402
from univid_pack.nodes.host.model import load_model  # noqa: E402
from univid_pack.univid import guidance, layers, memory  # noqa: E402

path, guider, frames, size = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(1)
layers.CPU_TOKENS = memory.CPU_TOKENS = layers.TOKENS  # as on the devices whose memory the host plans
guider = getattr(guidance, guider[0])(*guider[1:])


def resident(field: str) -> int:
    """Bytes of memory: VmRSS = now, VmHWM = the most since the last reset."""
    return 1024 * int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def call(frames: int, size: int) -> None:
    image, text = torch.randn(1, 6, 20), torch.randn(1, 77, 24)
    shown = {"univid_image": image, "univid_has_image": True}
    host_guider = UniVidGuider(model, guider)
    host_guider.set_conds([[text, shown]], [[text, {"univid_image": 0 * image, "univid_has_image": False}]])
    latent = torch.zeros(frames, 4, size, size)
    sampler = comfy.samplers.sampler_object("euler")
    host_guider.sample(torch.randn_like(latent), latent, sampler, torch.tensor([1.0, 0.0]), disable_pbar=True)


with torch.inference_mode():
    model = load_model(path, "fp32")
    call(1, 8)  # whatever is set up once
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what loading has freed, and the call would use again
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = resident("VmRSS")
    call(frames, size)
estimate = model.model.memory_required([len(guider.plan(True, True)) * frames, 4, size, size])
print(json.dumps({"measured": resident("VmHWM") - before, "estimate": estimate}))
