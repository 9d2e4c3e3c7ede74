"""Boxes as their corners x1 y1 x2 y2: overlaps, distances, conversions.

    overlap_nm = iou(ours_n4[:, None], theirs_m4)          # leading axes broadcast
    boxes_ba4 = from_logits(logits_ba4r, points_a2, strides_a)

Everything has finite values and gradients, for boxes of no area too: where a ratio has nothing to
divide by it is 0, so two boxes of no area do not overlap. A box whose corners are swapped has no
area. Shape suffixes: a anchor points, r bins of a distance.
"""

import jax
import jax.numpy as jnp

Array = jax.Array


def from_xywh(boxes: Array) -> Array:
    """Returns (..., 4) corners of boxes given by their first corner, width and height (COCO)."""
    return jnp.concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], -1)


def to_xywh(boxes: Array) -> Array:
    """Returns (..., 4) first corner, width and height of boxes."""
    return jnp.concatenate([boxes[..., :2], boxes[..., 2:] - boxes[..., :2]], -1)


def from_distances(points: Array, distances: Array) -> Array:
    """Returns (..., 4) boxes whose left, top, right and bottom sides are `distances` (..., 4) away
    from `points` (..., 2), as in FCOS (arXiv:1904.01355)."""
    return jnp.concatenate([points - distances[..., :2], points + distances[..., 2:]], -1)


def to_distances(points: Array, boxes: Array) -> Array:
    """Returns how far (..., 4) the left, top, right and bottom sides of `boxes` are away from
    `points` (..., 2); all are positive where a point is inside."""
    return jnp.concatenate([points - boxes[..., :2], boxes[..., 2:] - points], -1)


def from_logits(logits_a4r: Array, points_a2: Array, strides_a: Array) -> Array:
    """Returns boxes (..., a, 4) in pixels: each distance is the mean of its distribution over the
    bins 0 to r - 1, in strides (generalized focal loss, arXiv:2006.04388, equation 5)."""
    bins = jnp.arange(logits_a4r.shape[-1], dtype=logits_a4r.dtype)
    # Not a product of matrices: those of a TPU would round to bfloat16.
    distances = (jax.nn.softmax(logits_a4r, -1) * bins).sum(-1)
    return from_distances(points_a2, distances * strides_a[:, None])


def area(boxes: Array) -> Array:
    """Returns the area (...) of boxes (..., 4)."""
    sides = _sides(boxes)
    return sides[..., 0] * sides[..., 1]


def iou(ours: Array, theirs: Array) -> Array:
    """Returns the intersection over the union (...) of boxes (..., 4), 0 to 1."""
    return _iou_union(ours, theirs)[0]


def giou(ours: Array, theirs: Array) -> Array:
    """Returns IoU less the share of the enclosing box that is in neither (arXiv:1902.09630),
    -1 to 1."""
    overlap, union = _iou_union(ours, theirs)
    whole = area(_enclosing(ours, theirs))
    return overlap - _ratio(whole - union, whole)


def diou(ours: Array, theirs: Array) -> Array:
    """Returns IoU less the squared distance of the centres over the squared diagonal of the
    enclosing box (arXiv:1911.08287, equation 6), -1 to 1."""
    between = (ours[..., :2] + ours[..., 2:] - theirs[..., :2] - theirs[..., 2:]) / 2
    diagonal = _sides(_enclosing(ours, theirs))
    return iou(ours, theirs) - _ratio((between**2).sum(-1), (diagonal**2).sum(-1))


def ciou(ours: Array, theirs: Array) -> Array:
    """Returns DIoU less alpha v, where v compares the shapes (arXiv:1911.08287, equations 8 to 11).

    alpha = v / (1 - IoU + v) is a constant to the gradient, as in the authors' code. The gradient
    of v is exact: theirs leaves out its factor 1 / (width^2 + height^2), for boxes whose sides are
    at most 1; ours are in pixels.
    """
    v = (2 / jnp.pi * (_angle(theirs) - _angle(ours))) ** 2
    alpha = jax.lax.stop_gradient(_ratio(v, 1 - iou(ours, theirs) + v))
    return diou(ours, theirs) - alpha * v


def _sides(boxes: Array) -> Array:
    return jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0)


def _angle(boxes: Array) -> Array:
    """The arc tangent of width over height, 0 where both are 0 and it has no derivative."""
    width, height = jnp.moveaxis(_sides(boxes), -1, 0)
    nothing = (width == 0) & (height == 0)
    return jnp.arctan2(width, jnp.where(nothing, 1, height))


def _enclosing(ours: Array, theirs: Array) -> Array:
    first = jnp.minimum(ours[..., :2], theirs[..., :2])
    return jnp.concatenate([first, jnp.maximum(ours[..., 2:], theirs[..., 2:])], -1)


def _iou_union(ours: Array, theirs: Array) -> tuple[Array, Array]:
    first = jnp.maximum(ours[..., :2], theirs[..., :2])
    common = area(jnp.concatenate([first, jnp.minimum(ours[..., 2:], theirs[..., 2:])], -1))
    union = area(ours) + area(theirs) - common
    return _ratio(common, union), union


def _ratio(above: Array, below: Array) -> Array:
    """0 where there is nothing to divide by, and no gradient: 0 / 0 would make it NaN."""
    some = below > 0
    return jnp.where(some, above / jnp.where(some, below, 1), 0)
