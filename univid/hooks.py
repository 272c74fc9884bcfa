"""What a host may see and change while the U-Net runs: control nets, patches made for Stable Diffusion."""

from torch import Tensor, nn


class Hook:
    """Called at the places where UniVid's blocks are Stable Diffusion's; this one changes nothing.

    Places are "input", "middle" and "output", with Stable Diffusion's index of the block in each.
    """

    def enter(self, place: str, index: int) -> None:
        """A block is about to run."""

    def between(self, place: str, index: int, h: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        """h and skip, all `[(b t) c h w]`, as the network goes on with them.

        Called after every block of place "input", whose skip is the block's own h, after the "middle" block,
        and before every block of place "output".
        """
        return h, skip

    def leave_out(self, outputs: int) -> None:
        """The "middle" block and so many of the first "output" blocks do not run in this call."""

    def self_attention(self, layer: nn.Module, x: Tensor) -> Tensor:
        """SelfAttn of the trunk, a `SelfAttention`, on the normalised tokens `[(b t) s d]` of each frame."""
        return layer(x)
