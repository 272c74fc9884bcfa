"""The noise schedule, the prediction types, the Denoiser and the training loss.

Two scalings of one noisy video occur. A sampler's state is x = x0 + sigma noise (Karras et al. 2206.00364);
the network sees the variance-preserving x_t = sqrt(abar) x0 + sqrt(1 - abar) noise = x / sqrt(sigma^2 + 1),
with sigma^2 = (1 - abar) / abar. Everything here is float32; only the network may run in another dtype.

VideoCrafter and DynamiCrafter mix noise into s x0, with a factor s that falls along the timesteps. For the
network s x0 is the video, so the above holds with s x, s x0 and s sigma in the place of x, x0 and sigma.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .conditioning import Conditioning, with_null_image
from .config import BetaConfig, ScheduleConfig, StartProfile
from .devices import beside

# (x_t [b c t h w], timesteps [b], cond) -> [b c t h w]
Network = Callable[[Tensor, Tensor, Conditioning], Tensor]

# abar of the last timestep under zero terminal SNR: exactly 0 would be an infinite sigma. The host's number.
LAST_ALPHA_BAR = 4.8973451890853435e-08
MIN_SNR_GAMMA = 5.0
WEIGHTINGS = ("uniform", "min_snr")
MAX_BETA = 0.999  # of squaredcos_cap_v2, whose last step would leave nothing of the video
X0_SCALE_STEPS = 400  # timesteps along which the factor of x0 falls from 1 to its last value


class NoiseSchedule:
    """The discrete noise levels that a network was trained on.

    sigmas: `[T]` float32, ascending; sigmas[i] belongs to timestep i, in x = x0 + sigma noise.
    x0_scales: `[T]` float32, the factor s of x0 (VideoCrafter, DynamiCrafter); else 1.
    from_noise: whether sampling starts from noise alone, else from a video under noise.
    """

    def __init__(self, config: ScheduleConfig):
        alpha_bars = (1 - _betas(config.betas, config.num_timesteps)).cumprod(0)
        if config.zero_terminal_snr:
            alpha_bars = _zero_terminal_snr(alpha_bars)
        fall = torch.linspace(1, config.x0_scale, X0_SCALE_STEPS, dtype=torch.float64)
        x0_scales = fall[torch.arange(config.num_timesteps).clamp(max=X0_SCALE_STEPS - 1)]
        sigmas = ((1 - alpha_bars) / alpha_bars).sqrt() / x0_scales
        self.x0_scales = x0_scales.float()
        self.sigmas = sigmas.float()
        self.log_sigmas = sigmas.log().float()
        self.from_noise = True
        self._pure_noise = config.num_timesteps - 1 if config.zero_terminal_snr else None

    def until(self, timestep: int | None) -> "NoiseSchedule":
        """The same noise levels up to `timestep` alone, as sampling that starts there sees them; None = all.

        Raises:
            ValueError: a timestep that the schedule does not have.
        """
        if timestep is None:
            return self
        if not 0 < timestep < len(self.sigmas):
            raise ValueError(
                f"sampling must start at a timestep from 1 to {len(self.sigmas) - 1}, got {timestep}."
            )
        part = copy.copy(self)
        for name in ("sigmas", "log_sigmas", "x0_scales"):
            setattr(part, name, getattr(self, name)[: timestep + 1])
        return part

    def starting(self, start: StartProfile) -> "NoiseSchedule":
        """The noise levels that sampling goes through by a profile.

        Raises:
            ValueError: a start where the schedule has no timestep.
        """
        part = self.until(start.timestep)
        if not start.from_video:
            return part
        biased = start.biased_noise
        part = part.until(round(start.denoise * part.last) if biased is None else int(biased.t_n))
        part.from_noise, part._pure_noise = False, None
        return part

    def told(self, timesteps: Tensor) -> Tensor:
        """What the network is told in the place of timesteps, of their shape.

        Sampling begins with pure noise, which a network with zero terminal SNR knows from its last timestep
        alone: at one before it would take the noise for a faint video.
        """
        if self._pure_noise is None:
            return timesteps
        return torch.where(timesteps == self.last, self._pure_noise, timesteps)

    @property
    def last(self) -> int:
        """The timestep of the largest sigma."""
        return len(self.sigmas) - 1

    @property
    def sigma_min(self) -> float:
        return self.sigmas[0].item()

    @property
    def sigma_max(self) -> float:
        return self.sigmas[-1].item()

    def sigma(self, timestep: Tensor | float) -> Tensor:
        """Sigma of a timestep, log-linear between the entries of the table; any shape."""
        timestep = torch.as_tensor(timestep, dtype=torch.float32).clamp(0, len(self.sigmas) - 1)
        log_sigmas = beside(self.log_sigmas, timestep)
        low, high = log_sigmas[timestep.floor().long()], log_sigmas[timestep.ceil().long()]
        return torch.lerp(low, high, timestep.frac()).exp()

    def timestep(self, sigma: Tensor) -> Tensor:
        """The timestep whose table entry is nearest in log sigma (int64, the shape of `sigma`)."""
        distances = (sigma.float().log()[..., None] - beside(self.log_sigmas, sigma)).abs()
        return distances.argmin(-1)

    def x0_scale(self, sigma: Tensor) -> Tensor:
        """The factor s of x0 at `sigma`, of the same shape; linear in log sigma between timesteps."""
        scales = beside(self.x0_scales, sigma)
        low, fraction, _ = self.place(sigma)
        return torch.lerp(scales[low], scales[low + 1], fraction)

    def place(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Where `sigma` lies between timesteps, each of its shape: the lower one (int64), the fraction of the
        way to the next, linear in log sigma and within 0..1, and timesteps per log sigma on that way.
        """
        log_sigmas, log_sigma = beside(self.log_sigmas, sigma), sigma.float().log()
        high = torch.searchsorted(log_sigmas, log_sigma.contiguous()).clamp(1, len(log_sigmas) - 1)
        width = log_sigmas[high] - log_sigmas[high - 1]
        return high - 1, ((log_sigma - log_sigmas[high - 1]) / width).clamp(0, 1), 1 / width

    def add_noise(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The forward process, variance preserving: x_t `[b c t h w]` at timesteps `[b]`."""
        scale, alpha, beta = self._coefficients(timesteps, x0)
        return alpha * scale * x0 + beta * noise

    def target(self, x0: Tensor, noise: Tensor, timesteps: Tensor, prediction: str) -> Tensor:
        """What a perfect network of this prediction answers to `add_noise` of the same arguments.

        The video of which it speaks is s x0.
        """
        scale, alpha, beta = self._coefficients(timesteps, x0)
        if prediction == "v":
            return alpha * noise - beta * scale * x0
        return {"eps": noise, "x0": scale * x0}[prediction]

    def _coefficients(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """s, sqrt(abar) and sqrt(1 - abar), broadcastable to `like`."""
        scale = beside(self.x0_scales, like)[timesteps]
        sigma = broadcast(beside(self.sigmas, like)[timesteps] * scale, like)
        alpha = (sigma.square() + 1).rsqrt()
        return broadcast(scale, like), alpha, sigma * alpha


def _betas(config: BetaConfig, count: int) -> Tensor:
    """The variance of the noise that each timestep adds, float64 `[count]`."""
    if config.name == "scaled_linear":
        return torch.linspace(config.start**0.5, config.end**0.5, count, dtype=torch.float64).square()
    time = torch.linspace(0, 1, count + 1, dtype=torch.float64)
    alpha_bars = ((time + 0.008) / 1.008 * math.pi / 2).cos().square()  # 2102.09672, eq. 17
    return (1 - alpha_bars[1:] / alpha_bars[:-1]).clamp(max=MAX_BETA)


def _zero_terminal_snr(alpha_bars: Tensor) -> Tensor:
    """Shift sqrt(abar) so that the last timestep is pure noise (Lin et al. 2305.08891, alg. 1)."""
    roots = alpha_bars.sqrt()
    first, last = roots[0], roots[-1]
    alpha_bars = ((roots - last) * first / (first - last)).square()
    alpha_bars[-1] = LAST_ALPHA_BAR
    return alpha_bars


def broadcast(sigma: Tensor, like: Tensor) -> Tensor:
    """A scalar or `[b]` sigma as float32 on the device of `like`, one value a clip."""
    return beside(sigma, like, torch.float32).reshape(-1, *[1] * (like.dim() - 1))


# Views: what a network predicts, given x = x0 + sigma noise. The first argument is what is converted.


def eps_to_x0(eps: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """x0 of a predicted noise; sigma is a scalar or `[b]`."""
    return x - eps * broadcast(sigma, x)


def x0_to_eps(x0: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """The noise that x0 implies; sigma > 0 is a scalar or `[b]`."""
    return (x - x0) / broadcast(sigma, x)


def v_to_x0(v: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """x0 of a predicted velocity v = sqrt(abar) noise - sqrt(1 - abar) x0; sigma is a scalar or `[b]`."""
    sigma = broadcast(sigma, x)
    alpha = (sigma.square() + 1).rsqrt()
    return alpha * (alpha * x - sigma * v)


def x0_to_v(x0: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """The velocity that x0 implies; sigma > 0 is a scalar or `[b]`."""
    sigma = broadcast(sigma, x)
    alpha = (sigma.square() + 1).rsqrt()
    return (alpha * x - x0 / alpha) / sigma


def _x0_to_x0(x0: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    return x0


TO_X0 = {"eps": eps_to_x0, "v": v_to_x0, "x0": _x0_to_x0}


@dataclass(frozen=True)
class Denoiser:
    """A network as a function `(x, sigma, cond) -> x0`, whatever it predicts and whatever dtype it runs in.

    network: `(x_t [b c t h w], timesteps [b], cond) -> [b c t h w]`.
    prediction: "eps", "v" or "x0".
    dtype: of the network's input, conditions and output.
    null_image: tokens `[1 m d]` that a clip without image weight is shown; None = it sees no image tokens.
    """

    network: Network
    schedule: NoiseSchedule
    prediction: str
    dtype: torch.dtype = torch.float32
    null_image: Tensor | None = None

    def __call__(self, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """x `[b c t h w]` float32, sigma a scalar or `[b]` -> x0 `[b c t h w]` float32.

        A sigma on the CPU is the better one: what is computed of it then needs no other device.
        """
        sigma = sigma.float().expand(x.shape[0])
        timesteps, scale = self.schedule.timestep(sigma), self.schedule.x0_scale(sigma)
        s, sigma = broadcast(scale, x), sigma * scale
        x = x * s
        x_t = x * broadcast((sigma.square() + 1).rsqrt(), x)
        if self.null_image is not None:
            cond = with_null_image(cond, self.null_image)
        told = beside(self.schedule.told(timesteps), x)
        output = self.network(x_t.to(self.dtype), told, cond.to(dtype=self.dtype))
        return TO_X0[self.prediction](output.float(), x, sigma) / s


def training_loss(
    network: Network,
    schedule: NoiseSchedule,
    prediction: str,
    x0: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    cond: Conditioning,
    weighting: str = "uniform",
) -> Tensor:
    """The loss of each clip, `[b]` float32: mean squared error against `schedule.target`.

    x0, noise: `[b c t h w]` float32; timesteps: `[b]` int64.
    weighting: "uniform", or "min_snr" (Hang et al. 2303.09556, gamma 5): min(SNR, 5) on the error of x0,
        restated for the prediction type. Under zero terminal SNR it gives the last timestep no weight.

    Raises:
        ValueError: unknown weighting.
    """
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting must be one of {', '.join(WEIGHTINGS)}, got {weighting!r}.")
    output = network(schedule.add_noise(x0, noise, timesteps), timesteps, cond)
    error = output.float() - schedule.target(x0, noise, timesteps, prediction)
    loss = error.square().flatten(1).mean(1)  # [b]
    if weighting == "uniform":
        return loss
    snr = beside(schedule.sigmas * schedule.x0_scales, loss)[timesteps] ** -2
    # Squared errors relate as: error(x0) = error(eps) / SNR = error(v) / (SNR + 1).
    to_x0_error = {"eps": 1 / snr, "v": 1 / (snr + 1), "x0": 1.0}[prediction]
    return loss * to_x0_error * snr.clamp(max=MIN_SNR_GAMMA)
