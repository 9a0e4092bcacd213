"""Draw images of ten classes of clothes from a seed, a substitute for Fashion-MNIST.

Classes, sizes and layout are those of Fashion-MNIST; the images are original. An item is a set of
*attributes* (lengths in pixels, strengths from 0 to 1), from which an outline and its shading are
computed. The ranges of similar classes overlap, and the attributes of some items are shifted
towards those of another class, a few past the middle: as on real data, no classifier is perfect.

The images have the same bits on every machine. Therefore only operations that IEEE 754 fixes are
used: + - * /, sqrt, min, max, floor and comparisons, each in its own NumPy call, so that no
compiler fuses two. No sin, exp or power: their last bit depends on the SIMD variant that NumPy
chooses. No sum, mean or matmul of floats: their order of additions depends on it too. Random
numbers are raw Philox words: `Generator.normal` and the like may change with NumPy's version.
"""

import math
from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Examples = tuple[NDArray[np.uint8], NDArray[np.int32]]
Table = dict[str, tuple[tuple[float, float], ...]]

NAMES = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"
CLASS_NAMES = tuple(NAMES.split(","))
TRAIN_EXAMPLES, TEST_EXAMPLES = 60_000, 10_000
TRAIN_SEED, TEST_SEED = 1, 2

SIZE = 28  # height and width in pixels
BLOCK = 500  # images drawn at once: their float32 arrays fit into the processor's cache
SHIFTED_FRACTION, MAX_SHIFT = 0.35, 0.7  # of the items; of the way to the other class

# Three equally likely classes that an item of each class is shifted towards; its own is no shift.
SIMILAR = np.array(
    [6, 6, 3, 1, 1, 3, 4, 6, 4, 0, 4, 1, 2, 6, 2, 7, 9, 7, 0, 2, 4, 5, 9, 9, 8, 8, 8, 7, 7, 5]
).reshape(10, 3)

# Attribute ranges, one column per class. A strength below 0 counts as 0: a detail with the range
# (-1, 1) is absent from half of the items.
HANGING_CLASSES = (0, 1, 2, 3, 4, 6)
HANGING: Table = {
    #             T-shirt       Trouser       Pullover      Dress         Coat          Shirt
    "length":   ((24, 28),     (27, 28),     (24, 28),     (27, 28),     (25, 28),     (25, 28)),
    "shoulder": ((7, 9),       (3.8, 5),     (7, 8.8),     (3.6, 6),     (7, 8.8),     (6.8, 8.8)),
    "waist":    ((6, 8.2),     (4.2, 5.4),   (5.2, 7.2),   (3, 5),       (5.2, 7.2),   (5.4, 7.6)),
    "hem":      ((6.2, 8.6),   (3.6, 6),     (5.2, 7.4),   (3.6, 9),     (5.6, 8),     (5.6, 8.2)),
    "middle":   ((14, 18),     (6.5, 10),     (14, 18),     (9, 13),      (14, 18),     (14, 18)),
    "neck":     ((2.6, 4.6),   (3.8, 5),     (2.2, 4),     (1.8, 3.6),   (2.2, 3.6),   (2.2, 3.8)),
    "depth":    ((1, 5),       (0.1, 0.4),   (0.5, 3),     (0.5, 5),     (0.5, 4),     (0.5, 4.5)),
    "vee":      ((-0.6, 1),    (0, 0.1),     (-1, 1),      (-0.6, 1),    (0, 1.5),     (-0.3, 1.5)),
    "collar":   ((-1, 0.6),    (-0.2, 0.1),  (-1, 2.2),    (-1, 0.5),    (0, 2.5),     (-0.5, 1.8)),
    "slope":    ((0.2, 0.45),  (0.02, 0.1),  (0.25, 0.5),  (0.3, 0.6),   (0.25, 0.5),  (0.2, 0.5)),
    "sleeve":   ((1, 8),       (-3, -2),     (17, 25),     (-8, 16),     (18, 26),     (4, 25)),
    "cuff":     ((2.4, 3.2),   (1, 2),       (1.5, 2.2),   (1, 1.8),     (1.6, 2.4),   (1.5, 2.4)),
    "spread":   ((0.25, 0.5),  (0.1, 0.2),   (0.06, 0.12), (0.08, 0.2),  (0.06, 0.12), (0.07, 0.2)),
    "gap":      ((-1, -0.5),   (0.3, 2),     (-1, -0.5),   (-0.9, 0),    (-1.2, 0.3),  (-1, -0.1)),
    "opening":  ((-1.2, 0.3),  (-0.6, 0.3),  (-1, 0.3),    (-0.8, 0.3),  (0.05, 0.9),  (-0.3, 0.7)),
    "back":     ((-0.6, 0.6),  (-1, 0.2),    (-0.3, 0.7),  (-0.8, 0.5),  (-0.2, 0.8),  (-0.2, 0.8)),
    "buttons":  ((-2, 0.3),    (-2, 0.1),    (-2, 0.2),    (-1, 0.4),    (-0.6, 0.8),  (-0.4, 0.9)),
    "belt":     ((-2, 0.2),    (-2, 0.1),    (-2, 0.2),    (-0.5, 0.6),  (-1.5, 0.4),  (-2, 0.2)),
    "band":     ((-0.8, 0.3),  (-1, 0.3),    (-0.3, 0.5),  (-0.8, 0.3),  (-0.5, 0.4),  (-0.8, 0.3)),
    "pleats":   ((-2, 0.2),    (-0.8, 0.3),  (-1, 0.2),    (-0.4, 0.5),  (-1, 0.3),    (-0.8, 0.4)),
    "stripes":  ((-1.2, 0.4),  (-3, 0.2),    (-1.2, 0.4),  (-2, 0.3),    (-2.5, 0.2),  (-1.2, 0.3)),
    "checks":   ((-4, 0.2),    (-4, 0.2),    (-4, 0.2),    (-4, 0.3),    (-3, 0.3),    (-1.2, 0.6)),
    "blotch":   ((-1.2, 0.6),  (-2, 0.5),    (-1.5, 0.5),  (-0.7, 0.9),  (-3, 0.4),    (-1, 0.7)),
    "logo":     ((-0.6, 0.9),  (-2, -1),     (-0.8, 0.7),  (-2, 0.2),    (-2, 0.2),    (-2, 0.3)),
    "pocket":   ((-1.5, 0.2),  (-0.5, 0.5),  (-1, 0.2),    (-1.5, 0.2),  (-0.3, 0.6),  (-0.8, 0.4)),
}  # fmt: skip
SHOE_CLASSES = (5, 7, 9)
SHOES: Table = {
    #             Sandal        Sneaker       Ankle boot
    "length":   ((24, 28),     (26, 28),     (23, 27.5)),
    "toe":      ((1, 2.2),     (2.4, 3.8),   (2.6, 4.2)),
    "instep":   ((2.6, 5),     (4.5, 7),     (6, 8.5)),
    "shaft":    ((4, 10),      (6, 9.5),     (10.5, 20)),
    "throat":   ((0.4, 0.65),  (0.36, 0.5),  (0.4, 0.52)),
    "dip":      ((0.5, 2.5),   (0.5, 3.2),   (-1, 1.2)),
    "heel":     ((-6, 11),     (-3, 0.8),    (-2.5, 6)),
    "block":    ((0.06, 0.22), (0.3, 0.5),   (0.14, 0.32)),
    "counter":  ((-1.5, 1.2),  (0.8, 1.2),   (0.8, 1.2)),
    "sole":     ((1, 2.2),     (1.2, 2.6),   (0.8, 2)),
    "sole_tone": ((0.5, 1.2),  (0.6, 1.6),   (0.4, 1.2)),
    "open":     ((0.7, 1.8),   (-0.8, 0.15), (-1.5, 0.1)),
    "straps":   ((1.5, 4),     (2, 6),       (1, 4)),
    "slant":    ((-0.1, 0.5),  (-0.3, 0.3),  (-0.2, 0.3)),
    "trim":     ((-0.5, 0.6),  (-0.2, 1),    (-1.2, 0.6)),
    "laces":    ((-1, 0.2),    (-0.3, 0.9),  (-0.9, 0.7)),
    "gusset":   ((-2, 0.1),    (-2, 0.2),    (-0.6, 0.6)),
    "blotch":   ((-1.5, 0.5),  (-0.6, 0.6),  (-1.2, 0.5)),
}  # fmt: skip
BAG_CLASSES = (8,)
BAGS: Table = {
    "half_width": ((9, 14),), "height": ((11, 20),), "taper": ((-2, 3),), "corner": ((0.5, 6),),
    "handle": ((-3, 12),), "grip": ((3, 10),), "cord": ((0.5, 1.1),), "flap": ((-0.4, 0.75),),
    "flap_tone": ((0.6, 1.2),), "clasp": ((-0.6, 1),), "straps": ((-0.8, 0.6),),
    "rim": ((-0.3, 0.5),), "stripes": ((-2, 0.4),), "checks": ((-1.5, 0.4),),
    "blotch": ((-1.2, 0.7),),
}  # fmt: skip
# For every class, unless its own table has the attribute: the material, and the photograph.
COMMON: Table = {
    "light": ((0.35, 1.25),), "curve": ((0, 0.35),), "fold": ((0.1, 0.5),), "tone": ((0.75, 1.15),),
    "grain": ((0.02, 0.22),), "ink": ((-0.8, 0.8),), "pitch": ((0.2, 0.5),), "phase": ((0, 1),),
    "stripes": ((-4, 0.2),), "checks": ((-8, 0.2),),
    "shift": ((-0.8, 0.8),), "drop": ((-0.6, 0.6),), "shear": ((-0.05, 0.05),),
}  # fmt: skip

ROWS: Floats = (np.arange(SIZE, dtype=np.float32) + 0.5).reshape(1, SIZE, 1)  # pixel centres
COLUMNS: Floats = ROWS.reshape(1, 1, SIZE)


def draw(num_examples: int, *, seed: int) -> Examples:
    """Draw images uint8 [n,28,28,1] and labels int32 [n]; a smaller n gives a prefix of a larger n.

    Every 500 examples have 50 of each class, in random order. `seed` is from 0 to 2**64 - 1.
    """
    # glibc returns freed memory to the system, and getting it back would take half of the time.
    # After one large array was freed, it keeps as much (dynamic threshold, see mallopt(3)).
    np.empty(2**24, np.uint8)
    blocks = [_draw_block(seed, block) for block in range(-(-num_examples // BLOCK) or 1)]
    images, labels = (np.concatenate(parts)[:num_examples] for parts in zip(*blocks, strict=True))
    return images[..., None], labels


def _draw_block(seed: int, block: int) -> Examples:
    """Draw images [BLOCK,28,28] and labels of one block, from its own random numbers."""
    bits = np.random.Philox(key=np.array([seed, block], np.uint64))
    labels = (np.argsort(bits.random_raw(BLOCK), kind="stable") % 10).astype(np.int32)
    images = np.empty((BLOCK, SIZE, SIZE), np.uint8)
    for classes, table, shape in (
        (HANGING_CLASSES, HANGING, _hanging),
        (SHOE_CLASSES, SHOES, _shoe),
        (BAG_CLASSES, BAGS, _bag),
    ):
        chosen = np.flatnonzero(np.isin(labels, classes))
        item = _attributes(bits, labels[chosen], classes, table)
        image = shape(item) * np.minimum(item.light, 0.95)
        image = image * (1 + item.grain * (_uniform(bits, len(chosen), SIZE, SIZE) - 0.5))
        images[chosen] = (np.clip(image, 0, 1) * 255).astype(np.uint8)
    return images, labels


def _uniform(bits: np.random.Philox, *shape: int) -> Floats:
    """Draw from [0, 1) in steps of 2**-16, which float32 holds exactly."""
    size = math.prod(shape)
    # Little endian: splitting the machine's own words would depend on its byte order.
    words = bits.random_raw(-(-size // 4)).astype("<u8").view("<u2")[:size]
    return (words.astype(np.float32) * np.float32(2**-16)).reshape(shape)


def _attributes(
    bits: np.random.Philox, labels: NDArray[np.int32], classes: tuple[int, ...], table: Table
) -> SimpleNamespace:
    """Draw each attribute [m,1,1], and the folds and blobs of the cloth [m,28,28] in [0, 1)."""
    table = {name: ranges * len(classes) for name, ranges in COMMON.items()} | table
    chance = _uniform(bits, 2 + len(table), len(labels))
    shift = np.maximum(0, chance[0] - (1 - SHIFTED_FRACTION)) * (MAX_SHIFT / SHIFTED_FRACTION)
    similar = SIMILAR[labels, (chance[1] * 3).astype(np.int32)]
    own, other = np.searchsorted(classes, labels), np.searchsorted(classes, similar)
    item = SimpleNamespace()
    for (name, ranges), unit in zip(table.items(), chance[2:], strict=True):
        low, high = np.array(ranges, np.float32).T
        low = low[own] + shift * (low[other] - low[own])
        high = high[own] + shift * (high[other] - high[own])
        setattr(item, name, (low + (high - low) * unit)[:, None, None])
    item.folds = _field(_uniform(bits, len(labels), 6, 6), spacing=7)
    item.blobs = _field(_uniform(bits, len(labels), 11, 11), spacing=3)
    return item


def _field(knots: Floats, *, spacing: int) -> Floats:
    """Interpolate knots [m,k,k] that are `spacing` pixels apart to a smooth field [m,28,28]."""
    cell, within = np.divmod(np.arange(SIZE), spacing)
    weight: Floats = (within / spacing).astype(np.float32)
    for axis, share in ((1, weight.reshape(SIZE, 1)), (2, weight)):
        near, far = np.take(knots, cell, axis), np.take(knots, cell + 1, axis)
        rise: Floats = (far - near) * share
        knots = near + rise
    return knots


def _ramp(at: Floats, low: Floats | float, high: Floats | float) -> Floats:
    """Rise linearly from 0 at `low` to 1 at `high`."""
    return np.clip((at - low) / (high - low), 0, 1)


def _ease(at: Floats, low: Floats | float, high: Floats | float) -> Floats:
    """Rise from 0 at `low` to 1 at `high` with level ends."""
    ramp = _ramp(at, low, high)
    return ramp * ramp * (3 - 2 * ramp)


def _cover(at: Floats, low: Floats | float, high: Floats | float) -> Floats:
    """Return the fraction of the pixel centred on `at` between `low` and `high`: soft edges."""
    return np.clip(np.minimum(high, at + 0.5) - np.maximum(low, at - 0.5), 0, 1)


def _wave(at: Floats) -> Floats:
    """Oscillate between -1 and 1 with period 1: a triangle, because a sine is not portable."""
    return 4 * np.abs(at - np.floor(at) - 0.5) - 1


def _on(strength: Floats) -> Floats:
    """Limit a strength to 0 to 1: below 0 the detail is absent."""
    return np.clip(strength, 0, 1)


def _cloth(item: SimpleNamespace, x: Floats, y: Floats) -> Floats:
    """Shade the material: folds, blotches of print, stripes and checks."""
    shade = 1 + item.fold * (item.folds - 0.5)
    shade = shade + _on(item.blotch) * item.ink * _ramp(item.blobs, 0.45, 0.6)
    lines = np.clip(3 * _wave(y * item.pitch + item.phase), -1, 1)
    columns = np.clip(3 * _wave(x * item.pitch), -1, 1)
    checks = 0.5 * _on(item.checks)
    return shade * (1 - (_on(item.stripes) + checks) * lines) * (1 - checks * columns)


def _hanging(item: SimpleNamespace) -> Floats:
    """Draw clothes that hang from shoulders or a waist: an outline by rows, sleeves and legs."""
    y = ROWS - (SIZE - item.length) / 2 - item.drop / 2  # pixels below the highest point
    x = COLUMNS - SIZE / 2 - item.shift - item.shear * (ROWS - SIZE / 2)
    side = np.abs(x)
    hem = item.length - 0.5
    half = item.shoulder + (item.waist - item.shoulder) * _ease(y, 5, item.middle)
    half = half + (item.hem - item.waist) * _ramp(y, item.middle, hem)

    # Half a pixel below zero is a closed front: a pixel in the middle is then covered entirely.
    down = 1 - np.clip(y / item.depth, 0, 1)
    arch = np.sqrt(down)
    neckline = 0.85 * item.neck * (arch + _on(item.vee) * (down - arch)) - 0.5
    legs = (np.maximum(item.gap, -0.5) + 0.5) * _ramp(y, item.middle, hem) - 0.5
    rows = _cover(y, -9, hem)
    body = _cover(side, np.maximum(neckline, legs), half) * rows
    back = _cover(side, -1, neckline) * _cover(y, 0.6, item.depth) * _on(item.back) * 0.7

    waist = item.middle
    buttons = _on(item.buttons) * _cover(side, -1, 0.9) * _ramp(_wave(y * 0.28), 0.1, 0.5)
    chest = _cover(side, -1, 3.6) * _cover(y, 8, 13) * _ramp(item.blobs, 0.35, 0.5)
    edge = _on(item.collar) * _cover(side, neckline, neckline + 1.4) * _cover(y, -1, 5)
    belt = _on(item.belt) * _cover(y, waist - 1, waist + 0.6)
    band = _on(item.band) * _cover(y, hem - 1.8, SIZE)
    creases = _ramp(_wave(3 * side / half), 0, 0.6) * _ramp(y, waist, waist + 3)
    pockets = _on(item.pocket) * _cover(side, 2.2, 4.8) * _cover(y, waist + 2, waist + 3)
    details = 1 + 0.5 * buttons + _on(item.logo) * item.ink * chest - 0.35 * edge
    pleats = 0.8 * _on(item.pleats) * creases
    details = details * (1 - belt) * (1 - 0.6 * band) * (1 - pleats) * (1 - pockets)

    cloth = _cloth(item, x, y) * (1 - _on(item.opening) * _cover(side, -1, 0.7))
    bend = side / half
    image = body * cloth * (1 - item.curve * bend * bend) * details + back
    sleeve, sleeve_shade = _sleeves(item, side, y)
    image = image + sleeve * (cloth * sleeve_shade - image)

    past_neck = np.maximum(side - item.neck, 0)
    collar = np.maximum(item.collar, 0) * np.minimum(past_neck, 1)
    shoulders = np.clip(y - collar - item.slope * past_neck + 0.5, 0, 1)
    return image * shoulders * rows


def _sleeves(item: SimpleNamespace, side: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Return the cover and the shade of both sleeves, a tapering strip and its mirror image."""
    # `spread` is the tangent of half the angle to the vertical: a rotation without sine or cosine.
    square = item.spread * item.spread
    cosine, sine = (1 - square) / (1 + square), 2 * item.spread / (1 + square)
    out = side - item.shoulder + 1.3
    below = y - np.maximum(item.collar, 0) - item.slope * 4 - 1.5
    along, across = out * sine + below * cosine, np.abs(out * cosine - below * sine)
    width = 2.6 + (item.cuff - 2.6) * np.clip(along / 20, 0, 1)
    cover = np.clip(width - across + 0.5, 0, 1) * _cover(along, -2, item.sleeve)
    cuff = 1 - 0.6 * _on(item.band) * _ramp(along, item.sleeve - 2, item.sleeve - 1)
    edge = across / width
    return cover, item.tone * cuff * (1 - 0.35 * edge * edge)


def _shoe(item: SimpleNamespace) -> Floats:
    """Draw a shoe from the side with its toe to the left: a top and a bottom for each column."""
    heel = np.maximum(item.heel, 0)
    shaft = np.minimum(item.shaft, 26 - heel - item.sole)
    height = heel + item.sole + shaft
    # Fashion-MNIST scales the longer side to the image: a tall shoe is drawn shorter.
    length = item.length - 0.6 * np.maximum(height - 19, 0)
    z = SIZE / 2 + height / 2 + item.drop - ROWS  # pixels above the ground
    x = COLUMNS - (SIZE - length) / 2 - item.shift - 2 * item.shear * (z - 6)
    u = x / length  # 0 at the toe, 1 at the heel

    bed = item.sole + heel * _ease(u, 0.3, 0.75)
    blunt = 1 - _ramp(u, 0, 0.22)
    top = bed + item.toe * np.sqrt(1 - blunt * blunt)
    top = top + (item.instep - item.toe) * _ease(u, 0.12, item.throat + 0.06)
    top = top + (shaft - item.instep) * _ease(u, item.throat - 0.06, item.throat + 0.08)
    top = top - item.dip * _ramp(u, item.throat, 0.7) * (1 - _ramp(u, 0.75, 0.98))
    bottom = (bed - item.sole) * (1 - _ramp(u, 0.96 - item.block, 1 - item.block))
    bottom = bottom + 0.6 * item.sole * (1 - _ramp(u, 0, 0.15))  # the toe turns up

    # A sandal is the same upper, open except for slanted straps, an ankle strap and the counter.
    depth = top - z
    weave = _wave(u * item.straps + (z - bed) * item.slant * 0.25 + item.phase)
    strap = np.maximum(_ramp(weave, -0.2, 0.2), _cover(depth, -1, 1.6) * _ramp(u, 0.4, 0.5))
    strap = np.maximum(strap, _on(item.counter) * _ramp(u, 0.84, 0.9))
    inside = _cover(x, 0.2, length - 0.08 * np.maximum(z - bed, 0))
    upper = _cover(z, bed, top) * inside * (1 - _on(item.open) * (1 - strap))

    trim = _on(item.trim) * _ramp(weave, 0.2, 0.5) * _cover(u * 10, 3.5, 8)
    front = _cover(x / 2, (item.throat - 0.18) * length / 2, (item.throat + 0.05) * length / 2)
    laces = _on(item.laces) * front * _cover(depth, 0.6, 3.2) * _wave(u * 14)
    gusset = _on(item.gusset) * _cover(x, 0.6 * length, 0.78 * length) * _ramp(z - bed, 3, 5)
    welt = 0.5 * _cover(z, bed - 0.3, bed + 0.6)
    shade = _cloth(item, x, z) + item.ink * trim + laces
    shade = shade * (1 - 0.6 * item.curve * (1 - _ramp(depth, 0, 9))) * (1 - gusset) * (1 - welt)
    return upper * shade + _cover(z, bottom, bed) * inside * item.sole_tone


def _bag(item: SimpleNamespace) -> Floats:
    """Draw a bag: a box with round corners under an arched handle."""
    handle = np.maximum(item.handle, 0)
    height = np.minimum(item.height, 27 - handle)
    grip = np.minimum(item.grip, item.half_width - np.maximum(item.taper, 0) - 1)
    y = ROWS - (SIZE - height + handle) / 2 - item.drop  # pixels below the upper edge of the box
    x = COLUMNS - SIZE / 2 - item.shift - item.shear * y
    side = np.abs(x)

    inset = np.clip(item.corner - np.minimum(y, height - y), 0, item.corner)
    half = item.half_width - item.taper * (1 - np.clip(y / height, 0, 1)) - item.corner
    half = half + np.sqrt(item.corner * item.corner - inset * inset)
    box = _cover(side, -1, half) * _cover(y, 0, height)
    flap = np.clip(item.flap, 0.15, 1) * height
    has_flap = item.flap > 0.15
    bend = side / item.half_width
    shade = _cloth(item, x, y) * (1 - item.curve * bend * bend)
    shade = shade * np.where(has_flap & (y < flap), item.flap_tone, np.float32(1))
    shade = shade * (1 - has_flap * (0.5 * _cover(y, flap - 0.4, flap + 0.5)))
    shade = shade * (1 - _on(item.straps) * _cover(side, grip - 1, grip + 0.6))
    middle = _cover(side, -1, half - 1.2) * _cover(y, 1.2, height - 1.2)
    shade = shade * (1 - _on(item.rim) * (1 - middle))
    clasp = _on(item.clasp) * _cover(side, -1, 1.2) * _cover(y, flap - 1.5, flap + 1)
    image = box * (shade + clasp * (1.2 - shade))

    # The handle is the edge of an ellipse; the distance to it is in units of the smaller radius.
    rise = np.maximum(handle, 0.5)
    away, up = side / grip, (y - 1) / rise
    distance = np.abs(np.sqrt(away * away + up * up) - 1) * np.minimum(rise, grip)
    cord = np.clip(item.cord - distance + 0.5, 0, 1) * _cover(y, -SIZE, 1) * (handle > 1)
    return image + cord * (1 - box) * (item.tone - image)
