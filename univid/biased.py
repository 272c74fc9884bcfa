"""UniVG's biased Gaussian noise (2401.09084, 3.4): from a condition's video to the target's, not from noise.

In the library's scaling, with condition latents vC, target latents vT and plain noise eps, a noisy video is

    x = vT + lam (vC - vT) + sigma eps,    lam(t) = clip((t - t_m) / (t_n - t_m), 0, 1),

so sampling starts at t_n with x = vC + sigma eps, which is `samplers.initial_x` with latents=vC.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from .config import BiasedNoiseProfile, SamplingProfile
from .devices import beside
from .diffusion import NoiseSchedule, broadcast

# "paper": any sampler on the network's x0, as UniVG samples. "consistent": an ODE's solver on the flow that
# has the densities of training at every noise level; it needs a network that is shown vC (concat latents), as
# without it the samples scatter too much.
MODES = ("paper", "consistent")


@dataclass(frozen=True)
class BiasedNoise:
    """Biased noise along the noise levels of a model: `schedule` has the timestep t_n, or ends there."""

    profile: BiasedNoiseProfile
    schedule: NoiseSchedule

    def share(self, timestep: Tensor) -> Tensor:
        """lam, the condition's share of the video, of the timestep's shape."""
        t_m, t_n = self.profile.t_m, self.profile.t_n
        return ((timestep - t_m) / (t_n - t_m)).clamp(0, 1)

    def at(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """lam and dlam / dlog sigma, of sigma's shape; at t_n, where sampling starts, the slope below it."""
        low, fraction, slope = self.schedule.place(sigma)
        timestep = low + fraction
        inside = (timestep > self.profile.t_m) & (timestep < self.profile.t_n + 0.01)  # log is not exact
        return self.share(timestep), inside * slope / (self.profile.t_n - self.profile.t_m)

    def noise(self, eps: Tensor, condition: Tensor, target: Tensor, timesteps: Tensor) -> Tensor:
        """What training adds to `target`: eps' of the paper's last equation in 3.4.

        Of it, `add_noise`, `target` and every prediction type are as of plain noise.

        eps, condition, target: `[b c t h w]`; timesteps: `[b]` int64.
        """
        sigma = beside(self.schedule.sigmas, eps)[timesteps]
        return eps + broadcast(self.share(timesteps) / sigma, eps) * (condition - target)

    def consistent(
        self, denoise: Callable[[Tensor, Tensor], Tensor], condition: Tensor
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """A denoiser (x, sigma) -> x0 whose ODE has the densities that training shows the network.

        Of x above, dx/dlog sigma = dlam/dlog sigma (vC - vT) + sigma eps, which a sampler follows where it is
        told x0 + (lam - dlam/dlog sigma) (vC - x0).

        condition: vC, of x's shape or broadcastable to it; sigma: a scalar, or one for each of x's first
            dimension.
        """

        def follow(x: Tensor, sigma: Tensor) -> Tensor:
            x0 = denoise(x, sigma)
            share, slope = self.at(sigma)
            return x0 + broadcast(share - slope, x0) * (beside(condition, x0) - x0)

        return follow


def biased_mode(profile: SamplingProfile, asked: str | None, noisy: str | None = None) -> str | None:
    """The mode in which a model is sampled; None = it does not start from biased noise.

    asked: None = "consistent" where the network is shown its condition, else "paper".
    noisy: name of the sampler if it adds noise in its steps.

    Raises:
        ValueError: a mode that there is not, for another model, or for a sampler that cannot follow it.
    """
    if profile.start.biased_noise is None:
        if asked is not None:
            raise ValueError(f"this model has no biased noise, got its mode {asked!r}; leave that out.")
        return None
    mode = asked or ("paper" if profile.inputs.concat == "none" else "consistent")
    if mode not in MODES:
        raise ValueError(f"the mode of biased noise must be among {MODES}, got {mode!r}.")
    if mode == "consistent" and noisy is not None:
        raise ValueError(
            f"consistent biased noise needs a sampler that adds no noise, got {noisy}; take dpmpp_2m, or "
            "mode paper."
        )
    return mode
