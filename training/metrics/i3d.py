"""I3D (Carreira and Zisserman 2017), the network of FVD, as PyTorch modules under the names of its weights.

Inception with three dimensions. It comes from TensorFlow, whose "same" padding of an uneven number puts the
one more behind; with that, weights of the RGB network for Kinetics-400 give what they gave there.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Size = tuple[int, int, int]
MIXED = (  # a layer's name; channels of its branches: 1x1, 1x1 before 3x3, 3x3, 1x1 before 3x3, 3x3, pooled
    ("Mixed_3b", (64, 96, 128, 16, 32, 32)),
    ("Mixed_3c", (128, 128, 192, 32, 96, 64)),
    ("Mixed_4b", (192, 96, 208, 16, 48, 64)),
    ("Mixed_4c", (160, 112, 224, 24, 64, 64)),
    ("Mixed_4d", (128, 128, 256, 24, 64, 64)),
    ("Mixed_4e", (112, 144, 288, 32, 64, 64)),
    ("Mixed_4f", (256, 160, 320, 32, 128, 128)),
    ("Mixed_5b", (256, 160, 320, 32, 128, 128)),
    ("Mixed_5c", (384, 192, 384, 48, 128, 128)),
)
POOLED = {"Mixed_4b": ((3, 3, 3), (2, 2, 2)), "Mixed_5b": ((2, 2, 2), (2, 2, 2))}  # before these layers


def pad_same(x: Tensor, kernel: Size, stride: Size) -> Tensor:
    """Zeros around `[b c t h w]`, so that a layer gives ceil(size / stride) of each dimension."""
    pads = []
    for size, width, step in zip(x.shape[:1:-1], kernel[::-1], stride[::-1], strict=True):
        missing = max(width - (size % step or step), 0)
        pads += [missing // 2, missing - missing // 2]
    return F.pad(x, pads)


class Unit(nn.Module):
    """Convolution, batch norm and ReLU; the last one of a network is a convolution with a bias alone."""

    def __init__(self, inside: int, out: int, kernel: int = 1, stride: int = 1, last: bool = False):
        super().__init__()
        self.conv3d = nn.Conv3d(inside, out, kernel, stride, bias=last)
        self.bn = None if last else nn.BatchNorm3d(out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv3d(pad_same(x, self.conv3d.kernel_size, self.conv3d.stride))
        return x if self.bn is None else F.relu(self.bn(x))


class Pool(nn.Module):
    """The largest of each neighbourhood; zeros count outside, which is no more than a ReLU gives."""

    def __init__(self, kernel: Size, stride: Size):
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool3d(pad_same(x, self.kernel, self.stride), self.kernel, self.stride)


class Mixed(nn.Module):
    """Four branches side by side."""

    def __init__(self, inside: int, channels: tuple[int, ...]):
        super().__init__()
        one, before, three, before_other, other, pooled = channels
        self.b0 = Unit(inside, one)
        self.b1a, self.b1b = Unit(inside, before), Unit(before, three, 3)
        self.b2a, self.b2b = Unit(inside, before_other), Unit(before_other, other, 3)
        self.b3a, self.b3b = Pool((3, 3, 3), (1, 1, 1)), Unit(inside, pooled)
        self.width = one + three + other + pooled

    def forward(self, x: Tensor) -> Tensor:
        branches = self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x))
        return torch.cat(branches, 1)


class I3D(nn.Module):
    """Videos in -1..1 `[b 3 t 224 224]`, t at least 9, to logits `[b classes]`, the mean over time."""

    def __init__(self, classes: int = 400):
        super().__init__()
        layers = {
            "Conv3d_1a_7x7": Unit(3, 64, 7, 2),
            "MaxPool3d_2a_3x3": Pool((1, 3, 3), (1, 2, 2)),
            "Conv3d_2b_1x1": Unit(64, 64),
            "Conv3d_2c_3x3": Unit(64, 192, 3),
            "MaxPool3d_3a_3x3": Pool((1, 3, 3), (1, 2, 2)),
        }
        width = 192
        for name, channels in MIXED:
            if name in POOLED:
                layers[f"before_{name}"] = Pool(*POOLED[name])
            layers[name] = Mixed(width, channels)
            width = layers[name].width
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.logits = Unit(width, classes, last=True)

    def forward(self, video: Tensor) -> Tensor:
        *layers, logits = self.children()
        for layer in layers:
            video = layer(video)
        return logits(F.avg_pool3d(video, (2, 7, 7), 1)).mean((2, 3, 4))
