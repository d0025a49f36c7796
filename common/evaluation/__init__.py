"""Metrics, and the naive baselines that stand beside them: a module for each kind of experiment."""


def table(scores: dict[str, dict[str, float]], digits: int = 3) -> str:
    """Methods by rows, metrics by columns; without end (the grid of nearest) is a dash."""
    metrics = {metric: max(11, len(metric) + 2) for metric in next(iter(scores.values()))}
    first = max(15, *(len(name) + 1 for name in scores))
    rows = [" " * first + "".join(f"{metric:>{width}}" for metric, width in metrics.items())]
    for name, row in scores.items():
        numbers = (
            f"{row[metric]:{width}.{digits}f}" if row[metric] < 1e4 else f"{'-':>{width}}"
            for metric, width in metrics.items()
        )
        rows.append(f"{name:{first}}" + "".join(numbers))
    return "\n".join(rows)
