"""What failures cost, and how often to save: Young's first-order interval, Daly's better one, and what is lost."""

import math

YEAR_S = 365.25 * 24 * 3600


def mean_time_between_failures_s(failures_per_node_year: float, nodes: int) -> float:
    """Of a run that any node's failure interrupts; failures come independently of each other."""
    rate = failures_per_node_year * nodes
    return YEAR_S / rate if rate else math.inf


def young_interval_s(save_s: float, mtbf_s: float) -> float:
    """sqrt(2 C M): Young, A first order approximation to the optimum checkpoint interval, CACM 17(9), 1974."""
    return math.sqrt(2 * save_s * mtbf_s)


def best_interval_s(save_s: float, mtbf_s: float) -> float:
    """Seconds of training between two saves that lose least, where a save stops training for `save_s`.

    Daly, A higher order estimate of the optimum checkpoint interval for restart dumps, Future Generation Computer
    Systems 22(3), 2006, equation 37. It is Young's where saves are short beside the time between failures.
    """
    if math.isinf(mtbf_s):
        return math.inf
    if save_s >= 2 * mtbf_s:
        return mtbf_s
    ratio = save_s / (2 * mtbf_s)
    return young_interval_s(save_s, mtbf_s) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - save_s


def lost_share(interval_s: float, *, save_s: float, restart_s: float, mtbf_s: float) -> float:
    """The expected share of time that goes to saves, to work done again and to restarts.

    Daly's complete model: exponential failures, which may strike while a save or a restart is under way too.
    `restart_s` is what a failure costs beside the work since the last save.
    """
    if math.isinf(interval_s):
        return 0.0 if math.isinf(mtbf_s) else 1.0
    if math.isinf(mtbf_s):
        return save_s / (interval_s + save_s)
    exponent = (interval_s + save_s) / mtbf_s
    if exponent + restart_s / mtbf_s > 500:  # it would never get further, and exp would not hold the number
        return 1.0
    seconds = mtbf_s * math.exp(restart_s / mtbf_s) * math.expm1(exponent)
    return 1 - interval_s / seconds
