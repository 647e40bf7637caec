"""Worlds with closed forms: distributions of x0 with exactly known velocity and reward-tilted optimum, in float64.

Convention: x_t = (1 - t) x0 + t eps, u = eps - x0, v = E[u | x_t]. Everything follows from three facts:

1. Given x_t, the posterior of a Gaussian mixture is a Gaussian mixture, and atoms stay atoms. So every quantity at a
   noisy point is a posterior expectation. At t = 1 the posterior is the distribution of x0 itself.
2. A tilt q = w p is a change of measure inside the posterior: v_q = E[w u | x_t] / E[w | x_t], and so for the score.
3. Under a Gaussian, Cov(f, x0) = Cov(x0) E[grad f] (Stein's lemma). So a reward only has to provide its `moments`,
   E[f] [...] and E[grad f] [..., D] under N(mean [..., D], covariance [..., D, D]).

Rewards are Linear, Quadratic, Indicator, and Affine functions of them; on Discrete atoms, any function. Points x are
[B, D] and times [B], or one number for all. If there is no closed form, a ValueError is raised.

rewards.py: the rewards. world.py: the interface. discrete.py and mixture.py: the worlds. tilts.py: optima, divergences.
"""

from .discrete import Discrete
from .mixture import Gaussian, Mixture, Reweighted
from .rewards import Affine, Function, Indicator, Linear, Quadratic, Reward
from .tilts import (
    as_velocity,
    chi_square,
    chi_square_tilt,
    covariance_with_velocity,
    expected_reward,
    kl,
    kl_of_tilt,
    kl_tilt,
    weight_given_noisy,
)
from .world import Expectation, Posterior, World

__all__ = [
    "Affine",
    "Discrete",
    "Expectation",
    "Function",
    "Gaussian",
    "Indicator",
    "Linear",
    "Mixture",
    "Posterior",
    "Quadratic",
    "Reward",
    "Reweighted",
    "World",
    "as_velocity",
    "chi_square",
    "chi_square_tilt",
    "covariance_with_velocity",
    "expected_reward",
    "kl",
    "kl_of_tilt",
    "kl_tilt",
    "weight_given_noisy",
]
