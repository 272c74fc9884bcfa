"""What a host is told while the U-Net runs."""

import torch
from reference import SMALL, randn, randomize

from univid.conditioning import Conditioning
from univid.hooks import Hook
from univid.unet import UNet


@torch.no_grad()
def test_a_hook_is_called_once_at_each_place():
    class Recorded(Hook):
        def __init__(self):
            self.seen = []

        def enter(self, place, index):
            self.seen.append(("enter", place, index))

        def between(self, place, index, h, skip):
            self.seen.append(("between", place, index))
            return h, skip

    unet, hook, x = randomize(UNet(SMALL)), Recorded(), randn(2, 4, 3, 8, 8)
    cond = Conditioning(text=randn(2, 7, 48), image=None, weights=torch.tensor([[1.0, 0.0]] * 2))
    unet(x, torch.tensor([3, 800]), cond, hook=hook)
    inputs, outputs = len(unet.input_blocks), len(unet.output_blocks)
    expected = [(call, "input", k) for k in range(inputs) for call in ("enter", "between")]
    expected += [("enter", "middle", 0), ("between", "middle", 0)]
    expected += [(call, "output", k) for k in range(outputs) for call in ("enter", "between")]
    assert hook.seen == expected and inputs == outputs == 12
