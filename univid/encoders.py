"""CLIP's two towers as tokens for cross-attention, built from open_clip's own modules.

The towers carry open_clip's key names (`cond_stage_model.model.` in SD 2.1's single files, and `visual.`),
so its weights load without renaming. open_clip is imported when a tower is built, and nothing is downloaded.
"""

import logging

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from .config import TextConfig, VisionConfig
from .devices import beside

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

logger = logging.getLogger(__name__)


class TextEncoder(nn.Module):
    """Prompts to text tokens: the penultimate layer of an open_clip text tower through `ln_final`."""

    def __init__(self, config: TextConfig):
        super().__init__()
        from open_clip import SimpleTokenizer
        from open_clip.transformer import TextTransformer

        tower = TextTransformer(
            context_length=config.context_length,
            vocab_size=config.vocab_size,
            width=config.width,
            heads=config.heads,
            layers=config.layers,
            output_dim=config.embed_dim,
        )
        self.config = config
        self.tokenizer = SimpleTokenizer(context_length=config.context_length)
        # The parts without the tower: its causal mask is a buffer outside the state dict, which a model
        # built on the meta device would never get back.
        self.token_embedding = tower.token_embedding
        self.positional_embedding = tower.positional_embedding
        self.transformer = tower.transformer
        self.ln_final = tower.ln_final
        self.text_projection = tower.text_projection
        self.register_load_state_dict_pre_hook(_drop_logit_scale)

    @torch.no_grad()
    def forward(self, prompts: list[str]) -> Tensor:
        """Prompts to text tokens `[b n d]`; a prompt longer than the context is cut, with a warning."""
        return self.tokens(self.tokenize(prompts))

    def tokenize(self, prompts: list[str]) -> Tensor:
        """Prompts to token ids `[b n]` on the tower's device, zeros after the end token."""
        limit = self.config.context_length
        for prompt in prompts:
            length = len(self.tokenizer.encode(prompt)) + 2  # with the start and end tokens
            if length > limit:
                logger.warning("prompt of %d tokens cut to %d: %.60s...", length, limit, prompt)
        return beside(self.tokenizer(prompts), self.positional_embedding)

    def tokens(self, ids: Tensor) -> Tensor:
        """Token ids `[b n]` to text tokens `[b n d]`."""
        return self.ln_final(self._run(ids, self.config.layers - 1))

    def pooled(self, ids: Tensor) -> Tensor:
        """Token ids `[b n]` to CLIP's text embedding `[b e]`, not normalised."""
        x = self.ln_final(self._run(ids, self.config.layers))
        end = ids.argmax(dim=-1)  # the end token has the highest id
        return x[torch.arange(len(x), device=x.device), end] @ self.text_projection

    def _run(self, ids: Tensor, layers: int) -> Tensor:
        length = ids.shape[1]
        x = self.token_embedding(ids) + self.positional_embedding[:length]  # [b n d]
        causal = torch.full((length, length), float("-inf"), device=x.device, dtype=x.dtype).triu(1)
        for block in self.transformer.resblocks[:layers]:
            x = block(x, attn_mask=causal)
        return x


class ImageEncoder(nn.Module):
    """Pictures to image tokens: the last layer of an open_clip vision tower before `ln_post`.

    Attributes:
        ln_post, proj: what CLIP puts behind the tokens; an image projection can start from them.
    """

    def __init__(self, config: VisionConfig):
        super().__init__()
        from open_clip.transformer import VisionTransformer

        tower = VisionTransformer(
            image_size=config.image_size,
            patch_size=config.patch_size,
            width=config.width,
            layers=config.layers,
            heads=config.width // config.head_width,
            mlp_ratio=config.mlp_ratio,
            output_dim=config.embed_dim,
        )
        self.config = config
        self.conv1 = tower.conv1
        self.class_embedding = tower.class_embedding
        self.positional_embedding = tower.positional_embedding
        self.ln_pre = tower.ln_pre
        self.transformer = tower.transformer
        self.ln_post = tower.ln_post
        self.proj = tower.proj

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Pictures `[b 3 h w]` in -1..1 of any size to image tokens `[b m d]`."""
        return self.tokens(preprocess(beside(images, self.proj), self.config.image_size))

    def tokens(self, pixels: Tensor) -> Tensor:
        """Preprocessed `[b 3 s s]` to image tokens `[b m d]`, class token first, m = 1 + (s/patch)^2."""
        patches = rearrange(self.conv1(pixels.to(self.proj.dtype)), "b d h w -> b (h w) d")
        first = repeat(self.class_embedding, "d -> b 1 d", b=len(patches))
        x = torch.cat([first, patches], dim=1) + self.positional_embedding
        return self.transformer(self.ln_pre(x))

    def pooled(self, pixels: Tensor) -> Tensor:
        """Preprocessed pixels `[b 3 s s]` to CLIP's image embedding `[b e]`, not normalised."""
        return self.ln_post(self.tokens(pixels)[:, 0]) @ self.proj


def preprocess(images: Tensor, size: int) -> Tensor:
    """Pictures `[b 3 h w]` in -1..1 to CLIP's input `[b 3 size size]`, float32.

    The whole picture is squashed to a square, not cropped: for a video its borders matter.
    """
    squashed = F.interpolate(images.float(), size=(size, size), mode="bicubic", antialias=True)
    unit = (squashed.clamp(-1, 1) + 1) / 2
    mean, std = (beside(torch.tensor(values)[:, None, None], unit) for values in (CLIP_MEAN, CLIP_STD))
    return (unit - mean) / std


def _drop_logit_scale(module: nn.Module, state_dict: dict, prefix: str, *_) -> None:
    """Files of a whole CLIP keep the contrastive temperature beside the text tower; tokens do not need it."""
    state_dict.pop(prefix + "logit_scale", None)
