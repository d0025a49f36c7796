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
    ones = torch.ones_like(values[:, :1])  # [N,1], as are all coefficients
    coefficients = {
        "persistence": (ones, 0 * ones),
        "linear extrapolation": (2 * ones, -ones),
        "AR(2)": fit_ar2(values[:, :prefix]).split(1, dim=1),
    }
    predictions = {}
    for name, (a, b) in coefficients.items():
        one_step = a * values[:, prefix - 1 : -1] + b * values[:, prefix - 2 : -2]
        series = [values[:, prefix - 2 : prefix - 1], values[:, prefix - 1 : prefix]]  # each [N,1]
        for _ in range(prefix, values.shape[1]):
            series.append(a * series[-1] + b * series[-2])
        predictions[name] = one_step, torch.cat(series[2:], dim=1)
    return predictions


def fit_ar2(prefix: Tensor) -> Tensor:
    """Least squares, for each series its own: from `prefix` [N,P] to coefficients [N,2].

    Noise on the values draws the coefficients towards zero, so in noise AR(2) is not the best method.
    """
    before = torch.stack([prefix[:, 1:-1], prefix[:, :-2]], dim=2)  # [N,P-2,2]
    # gelsd takes a series that leaves the coefficients open, such as a constant one
    return torch.linalg.lstsq(before, prefix[:, 2:, None], driver="gelsd").solution[..., 0]  # [N,2]


def score(predictions: Predictions, values: Tensor, clean: Tensor) -> dict[str, float]:
    """Scores one step ahead against `values`, which have noise, and the forecast against the clean waves.

    The two, `values` and `clean` are [N,horizon]. The drift is how far amplitudes are off at the end, in
    percent. An amplitude is the standard deviation of the last 200 steps, so a forecast that died out is
    100 % off; the mean is of absolute values: too large and too small do not cancel.
    """
    one_step, forecast = predictions
    ratio = forecast[:, -200:].std(dim=1) / clean[:, -200:].std(dim=1)
    return {
        "one-step MSE": mse(one_step, values),
        "forecast RMSE": mse(forecast, clean) ** 0.5,
        "amplitude drift, %": 100 * (ratio - 1).abs().mean().item(),
    }


def mse(predicted: Tensor, values: Tensor) -> float:
    """Mean squared error over all series and steps. Against noisy values it cannot be below the noise floor,
    the variance of their noise: nobody can know the noise of the next value."""
    return (predicted - values).square().mean().item()
