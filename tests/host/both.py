"""One run in the host's sampler, and the same in the library's, on what random_model.py writes."""

import torch
from einops import rearrange

FRAMES, SCHEDULER = 5, "sgm_uniform"
GUIDANCE = {
    "joint": ("Joint", (3.0,)),
    "joint rescaled": ("Joint", (3.0, 0.7)),
    "separate": ("Separate", (3.0, 2.0)),
    "separate rescaled": ("Separate", (3.0, 2.0, 0.5)),
    "nested": ("Nested", (3.0, 2.0)),
}


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


TEXT, NONE, IMAGE = randn(1, 77, 24, seed=1), randn(1, 77, 24, seed=2), randn(1, 6, 20, seed=3)
LATENT = {"samples": torch.zeros(FRAMES, 4, 8, 8)}


def conditionings(weights=(0.8, 0.6), text=TEXT, image=IMAGE, **extras):
    """Positive and negative, as Encode Dual Prompt and Set Modality Weights give them."""
    weights = torch.as_tensor(weights, dtype=torch.float32)
    weights = weights.reshape(-1, 1, 2) if weights.dim() < 3 else weights
    shown = {"univid_image": image, "univid_has_image": True, "univid_weights": weights} | extras
    hidden = {
        "univid_image": torch.zeros_like(image),
        "univid_has_image": False,
        "univid_weights": torch.tensor([[[1.0, 0.0]]]),
    }
    return [[text, shown]], [[NONE, hidden]]


def run(model, guidance="joint", conds=None, sampler="euler", latent=LATENT, steps=4, denoise=1.0):
    from univid_pack.nodes.host.sampling import sample

    positive, negative = conds or conditionings()
    out, pulls = sample(
        model, positive, negative, latent, seed=7, steps=steps, sampler_name=sampler,
        scheduler=SCHEDULER, guider=guider(guidance), denoise=denoise,
    )  # fmt: skip
    return out["samples"], pulls


def guider(name):
    from univid_pack.univid import guidance

    kind, scales = GUIDANCE[name]
    return getattr(guidance, kind)(*scales)


def expected(
    library,
    guidance="joint",
    conds=None,
    sampler="euler",
    frames=FRAMES,
    size=8,
    steps=4,
    maps=None,
    over_steps=None,
):
    """The library's own sampler at the same seed, steps and conditions.

    maps: in the place of the masks. over_steps: of the pictures' shares, as the library's `Run` takes them.
    """
    from univid_pack.univid import samplers
    from univid_pack.univid.conditioning import Conditioning
    from univid_pack.univid.noise import ClipNoise
    from univid_pack.univid.steer import Masks, Steering
    from univid_pack.univid.steer.run import Run

    (text, extras), (none, _) = (c[0] for c in conds or conditionings())

    def clip(tokens):  # [1|t ...] -> [1 ...] or [1 t ...]
        return tokens if len(tokens) == 1 else tokens[None]

    cond = Conditioning(
        text=clip(text),
        image=clip(extras["univid_image"]),
        weights=clip(extras["univid_weights"][:, 0]),
        maps=extras.get("univid_masks", Masks()).maps(frames, size, size) if maps is None else maps,
    )
    uncond = Conditioning(text=none, image=None, weights=torch.tensor([[1.0, 0.0]]))
    denoiser = library.denoiser()
    acting = Run(denoiser, Steering(), over_steps)
    sigmas = samplers.sigma_schedule(SCHEDULER, denoiser.schedule, steps, 1.0)
    noise = ClipNoise([7])
    x = samplers.initial_x(noise((1, 4, frames, size, size)), sigmas[0], denoiser.schedule, None)
    g = guider(guidance)
    x = samplers.get_sampler(sampler, denoiser.schedule)(
        lambda x, s: g(denoiser, x, s, acting.shown(cond, s), uncond), x, sigmas, noise=noise
    )
    # The library's latents are scaled, the host's are not.
    return rearrange(x, "1 c t h w -> t c h w") / 0.18215


def difference(a, b):
    return ((a - b).abs().max() / b.std()).item()
