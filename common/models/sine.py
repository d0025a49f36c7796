"""A vanilla RNN that goes on with a series, and the formula for its read-out."""

import math

import torch
from torch import Tensor, nn


class Forecaster(nn.Module):
    """One layer of vanilla RNN, h[t] = tanh(W h[t-1] + w x[t]), and a linear read-out of the next value.

    It has no biases, so the forecast of a series turned upside down is the forecast turned upside down.
    It begins with rotations: random planes of the state, which has an even `size`, turn by up to `fastest`
    radians a step, a little above the highest frequency to come, and shrink a little (after Arjovsky et al.
    2016, "Unitary Evolution Recurrent Neural Networks", whose matrices turn without shrinking).
    """

    def __init__(self, size: int, fastest: float) -> None:
        super().__init__()
        self.rnn = nn.RNN(1, size, nonlinearity="tanh", bias=False, batch_first=True)
        self.read_out = nn.Linear(size, 1, bias=False)
        angles = fastest * torch.rand(size // 2)
        shrinks = 0.6 + 0.33 * torch.rand(size // 2)
        planes = [
            shrink * torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
            for angle, shrink in zip(angles.tolist(), shrinks.tolist(), strict=True)
        ]
        basis = nn.init.orthogonal_(torch.empty(size, size))
        with torch.no_grad():
            into, recurrent = self.rnn.parameters()  # [size,1], [size,size]
            into.normal_(0, 0.2)
            recurrent.copy_(basis @ torch.block_diag(*planes) @ basis.T)

    def states(self, values: Tensor) -> Tensor:
        """From `values` [N,T] to the state after each: [N,T,size]."""
        return self.rnn(values[..., None])[0]

    def forward(self, values: Tensor) -> Tensor:
        """From `values` [N,T] to what should follow each, knowing only what is before: [N,T]."""
        return self.read_out(self.states(values))[..., 0]

    @torch.no_grad()
    def forecast(self, prefix: Tensor, steps: int) -> Tensor:
        """Reads `prefix` [N,P], then goes on on its own output: [N,steps]."""
        output, state = self.rnn(prefix[..., None])  # [N,P,size], [1,N,size]
        values = [self.read_out(output[:, -1:])]  # each [N,1,1]
        for _ in range(steps - 1):
            output, state = self.rnn(values[-1], state)
            values.append(self.read_out(output))
        return torch.cat(values, dim=1)[..., 0]


def least_squares(states: Tensor, targets: Tensor) -> Tensor:
    """The read-out that fits best: from float64 [M,size] and [M] to weights [size] (normal equations)."""
    squares = states.T @ states / len(states)
    ridge = 1e-12 * torch.eye(len(squares), dtype=states.dtype)  # equal series leave most weights open
    return torch.linalg.solve(squares + ridge, states.T @ targets / len(states))
