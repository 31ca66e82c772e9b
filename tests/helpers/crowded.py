"""What in a figure covers something else: for tests of pictures."""
from __future__ import annotations

from itertools import pairwise

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.transforms import Bbox


def crowded(figure):
    """Each panel's ticks and labels that run into each other, what its legend covers, and its legend's marks that cross their text."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer, out = canvas.get_renderer(), []
    for n, axes in enumerate(figure.axes):
        ticks = [t for t in axes.get_xticklabels() if t.get_text() and _between(t.get_window_extent(renderer), axes.bbox)]
        boxes = [(t.get_text(), t.get_window_extent(renderer).padded(-0.5)) for t in [*ticks, *axes.texts]]
        out += [f"panel {n}: {a!r} and {b!r}" for i, (a, one) in enumerate(boxes) for b, other in boxes[i + 1:] if one.overlaps(other)]
        if legend := axes.get_legend():
            if box := Bbox.intersection(legend.get_window_extent(renderer), axes.bbox):     # what is drawn ends at the panel
                drawn = [(line.get_label(), _path(line)) for line in axes.lines]
                drawn += [(c.get_label(), p) for c in axes.collections for p in _paths(c)]
                out += [f"panel {n}: the legend on {label}" for label, points in drawn
                        if any(box.padded(2).contains(*point) for point in points)]          # marks have a width
                out += [f"panel {n}: the legend on a bar" for bar in axes.patches if box.overlaps(bar.get_window_extent(renderer))]
            out += [f"panel {n}: a mark on {text.get_text()!r}" for mark, text in zip(legend.legend_handles, legend.get_texts())
                    if mark.get_window_extent(renderer).x1 > text.get_window_extent(renderer).x0]
    return out


def _between(box, frame):
    return frame.x0 - 1 <= (box.x0 + box.x1) / 2 <= frame.x1 + 1


def _path(line):
    """The points of a line in pixels, and those between them where it is joined up."""
    data = np.column_stack([np.asarray(line.get_xdata(orig=False), float), np.asarray(line.get_ydata(orig=False), float)])
    points = line.get_transform().transform(data)
    return points if line.get_linestyle() == "None" or len(points) < 2 else np.concatenate(
        [np.linspace(a, b, 50) for a, b in pairwise(points)])


def _paths(collection):
    """The points of what is drawn at offsets, such as dots, or else of lines and areas."""
    if len(collection.get_offsets()) and collection.get_offset_transform() is not None and len(collection.get_paths()) == 1:
        return [collection.get_offset_transform().transform(collection.get_offsets())]
    return [collection.get_transform().transform(path.interpolated(20).vertices) for path in collection.get_paths()]
