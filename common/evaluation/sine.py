"""How good forecasts of a series are, and the linear methods that stand beside a net.

All of these methods are one recurrence, x[t+1] = a x[t] + b x[t-1], with other coefficients: (1, 0) for
persistence, (2, -1) for linear extrapolation, and for AR(2) those that fit the series best. A clean sine
obeys it exactly, with a = 2 cos(2 pi frequency) and b = -1, so AR(2) cannot be beaten there.
"""

import torch
from torch import Tensor

Predictions = tuple[Tensor, Tensor]  # one step ahead each time; forecast on its own output: both [N,horizon]


def linear_methods(values: Tensor, prefix: int) -> dict[str, Predictions]:
    """Persistence, linear extrapolation, and AR(2) fitted to each prefix, for `values` [N,prefix+horizon]."""
    start, horizon = values[:, :prefix], values.shape[1] - prefix
    repeat = torch.ones(len(values), 1, dtype=values.dtype)
    coefficients = {
        "persistence": repeat * torch.tensor([1.0, 0.0]),
        "linear extrapolation": repeat * torch.tensor([2.0, -1.0]),
        "AR(2)": fit_ar2(start),
    }
    return {
        name: (one_step(ab, values[:, prefix - 2 : -1]), forecast(ab, start, horizon))
        for name, ab in coefficients.items()
    }


def score(predictions: Predictions, values: Tensor, clean: Tensor) -> dict[str, float]:
    """One step ahead against the values, which have noise; the forecast against the clean waves.

    Args:
        predictions: one step ahead and forecast, both [N,horizon].
        values, clean: what followed the prefix, with and without noise, both [N,horizon].
    """
    one_step_ahead, forecasts = predictions
    return {
        "one-step MSE": mse(one_step_ahead, values),
        "forecast RMSE": mse(forecasts, clean) ** 0.5,
        "amplitude drift, %": drift(forecasts, clean),
    }


def fit_ar2(prefix: Tensor) -> Tensor:
    """Least squares, for each series its own: from `prefix` [N,P] to coefficients [N,2].

    Noise on the values draws the coefficients towards zero, so in noise AR(2) is not the best method.
    """
    before = torch.stack([prefix[:, 1:-1], prefix[:, :-2]], dim=2)  # [N,P-2,2]
    # gelsd takes a series that leaves the coefficients open, such as a constant one
    return torch.linalg.lstsq(before, prefix[:, 2:, None], driver="gelsd").solution[..., 0]  # [N,2]


def one_step(coefficients: Tensor, values: Tensor) -> Tensor:
    """From `values` [N,T] to what should follow each but the first: [N,T-1]."""
    a, b = coefficients[:, :1], coefficients[:, 1:]
    return a * values[:, 1:] + b * values[:, :-1]


def forecast(coefficients: Tensor, prefix: Tensor, steps: int) -> Tensor:
    """Goes on from `prefix` [N,P] on its own output: [N,steps]."""
    a, b = coefficients.unbind(1)
    before, last = prefix[:, -2], prefix[:, -1]
    values = []
    for _ in range(steps):
        before, last = last, a * last + b * before
        values.append(last)
    return torch.stack(values, dim=1)


def mse(predicted: Tensor, values: Tensor) -> float:
    """Mean squared error over all series and steps. Against noisy values it cannot be below the noise floor,
    the variance of their noise: nobody can know the noise of the next value."""
    return (predicted - values).square().mean().item()


def drift(predicted: Tensor, clean: Tensor, last: int = 200) -> float:
    """How far amplitudes are off at the end of forecasts [N,steps], in percent of the true ones.

    Amplitude is the standard deviation over the `last` steps, so a forecast that died out is 100 % off.
    The mean over the series of the absolute values: too large and too small do not cancel.
    """
    ratio = predicted[:, -last:].std(dim=1) / clean[:, -last:].std(dim=1)
    return 100 * (ratio - 1).abs().mean().item()
