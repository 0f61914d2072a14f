"""What the boundary mask must be on average."""


def uniform_mask_mean(threshold: float, soft_transition: float) -> float:
    """Mean weight over points spread evenly in a cell, for threshold + soft_transition <= 1.

    P(d >= t) = (1 - t)^3, d being the least of three uniform variables; a smoothstep averages that
    law over the thresholds t + s u with u ~ Beta(2, 2), whose moments are 1/2, 3/10 and 1/5.
    """
    a, s = 1 - threshold, soft_transition
    return a**3 - 1.5 * a**2 * s + 0.9 * a * s**2 - 0.2 * s**3
