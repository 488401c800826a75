"""Where labels go in a figure, so that they neither cover each other nor what they name."""

import numpy as np


def spread(wanted: np.ndarray, gap: float, low: float, high: float) -> np.ndarray:
    """Move positions on a line apart, each as little as may be.

    Parameters
    ----------
    wanted : ndarray, shape [labels]
        Where the labels would like to be.
    gap
        Least distance of two neighbours; smaller where they would not fit between the bounds.
    low, high
        Bounds of all positions.

    Returns
    -------
    ndarray, shape [labels]
        Positions in the order of `wanted`.
    """
    wanted = np.asarray(wanted, dtype=float)
    if not len(wanted):
        return wanted
    order = np.argsort(wanted, kind="stable")
    gap = min(gap, (high - low) / max(len(wanted) - 1, 1))
    # Least squares under "each at least `gap` above the one below": with the gaps subtracted it is
    # isotonic regression, solved by pooling neighbours that are out of order.
    pools: list[tuple[float, int]] = []  # mean and size
    for value in wanted[order] - gap * np.arange(len(wanted)):
        pools.append((value, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (above, many), (below, few) = pools.pop(), pools.pop()
            pools.append(((above * many + below * few) / (many + few), many + few))
    level = np.concatenate([[mean] * size for mean, size in pools])
    level = np.clip(level, low, high - gap * (len(wanted) - 1))
    placed = np.empty(len(wanted))
    placed[order] = level + gap * np.arange(len(wanted))
    return placed


def place(
    points: np.ndarray, sizes: np.ndarray, bounds: tuple[float, float, float, float], clear: float
) -> tuple[np.ndarray, np.ndarray]:
    """Find a place beside its point for each of a scatter plot's labels.

    Each label, the most crowded point's first, takes the one of sixteen places around its point
    that covers least: points, labels placed before, and what lies beyond the bounds.

    Parameters
    ----------
    points : ndarray, shape [labels, 2]
        The points, in pixels.
    sizes : ndarray, shape [labels, 2]
        Width and height of the labels, in pixels.
    bounds
        Left, bottom, right and top of the plot, in pixels.
    clear
        Radius around a point that labels keep free, in pixels.

    Returns
    -------
    corners : ndarray, shape [labels, 2]
        Lower left corners of the labels, in pixels.
    far : ndarray of bool, shape [labels]
        Labels that stand so far off that a line should lead to the point.
    """
    left, bottom, right, top = bounds
    dots = np.concatenate([points - clear, points + clear], axis=1)
    boxes = list(dots)
    corners = np.zeros((len(points), 2))
    far = np.zeros(len(points), dtype=bool)
    distance = np.abs(points[:, None] - points[None]).sum(axis=2)
    for label in np.argsort(np.sort(distance, axis=1)[:, :4].sum(axis=1), kind="stable"):
        width, height = sizes[label]
        best: tuple = ()
        for reach in (1.0, 4.5):
            for across, up in _SIDES:
                offset = np.array([across, up]) * (clear * reach)
                # The label's edge or corner that faces the point lies on the offset.
                shift = np.array([(across - 1) / 2 * width, (up - 1) / 2 * height])
                corner = points[label] + offset + shift
                box = np.concatenate([corner, corner + sizes[label]])
                outside = max(left - box[0], 0, box[2] - right) + max(
                    bottom - box[1], 0, box[3] - top
                )
                cost = _covered(box, np.array(boxes)) + 1e3 * outside + (reach > 1) * 0.5 * height
                if not best or cost < best[0]:
                    best = (cost, corner, box, reach > 1)
        _, corners[label], box, far[label] = best
        boxes.append(box)
    return corners, far


_SIDES = [(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1)]


def _covered(box: np.ndarray, others: np.ndarray) -> float:
    width = np.minimum(box[2], others[:, 2]) - np.maximum(box[0], others[:, 0])
    height = np.minimum(box[3], others[:, 3]) - np.maximum(box[1], others[:, 1])
    return float((np.clip(width, 0, None) * np.clip(height, 0, None)).sum())
