"""Metrics, and the naive baselines that stand beside them: a module for each kind of experiment."""


def table(scores: dict[str, dict[str, float]]) -> str:
    """Methods by rows, metrics by columns; without end (the grid of nearest) is a dash."""
    metrics = list(next(iter(scores.values())))
    rows = [f"{'':15}" + "".join(f"{metric:>11}" for metric in metrics)]
    for name, row in scores.items():
        numbers = (f"{row[metric]:11.3f}" if row[metric] < 1e4 else f"{'-':>11}" for metric in metrics)
        rows.append(f"{name:15}" + "".join(numbers))
    return "\n".join(rows)
