"""The hip of a seed in millimetres: its outlines, its implant, and the geometry that both are made of.

x runs to the midline of a right hip, y to the feet, from the joint's centre.
"""

from dataclasses import dataclass, field

import numpy as np

FEMUR_NATIVE = [(-18, -15), (-32, -10), (-44, -14), (-57, -27), (-69, -20), (-75, -2), (-72, 18), (-66, 40), (-60, 75)]
FEMUR_CUT = [(-36, 2), (-44, -12), (-57, -27), (-69, -20), (-75, -2), (-72, 18), (-66, 40), (-60, 75)]
FEMUR_MEDIAL = [(-26, 100), (-21, 82), (-12, 68), (-17, 56), (-20, 44)]
FEMUR_MEDIAL_NATIVE = [(-14, 30), (-6, 20), (-6, -6)]
ILIUM = [
    (-34, -8),
    (-42, -30),
    (-40, -62),
    (-58, -100),
    (-66, -150),
    (10, -190),
    (88, -175),
    (84, -110),
    (64, -78),
    (42, -50),
    (38, -20),
    (30, 10),
    (14, 32),
    (-8, 28),
    (-26, 18),
]
PUBIS_ISCHIUM = [
    (16, 4),
    (46, -8),
    (80, 8),
    (104, 24),
    (104, 52),
    (84, 66),
    (74, 88),
    (54, 112),
    (32, 110),
    (24, 86),
    (26, 58),
    (12, 34),
]
FORAMEN = [(48, 26), (70, 28), (82, 40), (70, 58), (54, 82), (42, 80), (38, 54)]


@dataclass
class Hip:
    """Millimetre geometry of one seed; the same whatever finding is drawn."""

    kind: str  # "native", "prosthesis" or "spacer"
    femur_turn: float  # degrees, adduction
    shaft_half_width: float
    stem_length: float
    stem_tip: float  # half width at the tip
    stem_flare: float  # medial half width at the top
    head_radius: float
    cup_radius: float
    cup_wall: float
    cup_tilt: float  # degrees
    neck_width: float
    soft: dict = field(default_factory=dict)


def square(matrix):
    """2x3 -> 3x3."""
    return np.vstack([matrix, [0, 0, 1]])


def motion(degrees=0.0, shift=(0, 0), around=(0, 0)):
    """2x3 rotation around a point, then a shift."""
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    around = np.asarray(around, float)
    return np.column_stack([turn, around - turn @ around + np.asarray(shift, float)])


def move(points, matrix):
    return np.asarray(points, float) @ matrix[:, :2].T + matrix[:, 2]


def circle(centre, radius, start=0.0, end=360.0, steps=48):
    angle = np.deg2rad(np.linspace(start, end, steps))
    return np.column_stack([centre[0] + radius * np.cos(angle), centre[1] + radius * np.sin(angle)])


def ellipse8(rx, ry):
    return circle((0, 0), 1, 0, 315, 8) * [rx, ry]


def smooth(points, steps=8):
    """Closed Catmull-Rom curve through control points [N, 2] -> [N * steps, 2]."""
    p = np.asarray(points, float)
    a, b, c, d = (np.roll(p, shift, axis=0)[:, None] for shift in (1, 0, -1, -2))
    t = np.linspace(0, 1, steps, endpoint=False)[None, :, None]
    curve = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    return curve.reshape(-1, 2)


def ring_band(centre, inner, outer, start, end):
    return np.vstack([circle(centre, inner, start, end, 24), circle(centre, outer, end, start, 24)])


def roughen(rng, points, amount):
    """Shift control points by a normal of `amount` mm."""
    return np.asarray(points, float) + rng.normal(0, amount, np.shape(points))


def random_hip(rng, kind):
    soft = {
        "lateral": rng.uniform(92, 150),
        "density": rng.uniform(0.35, 0.75),
        "marrow": rng.uniform(0.26, 0.46),
        "cortex": rng.uniform(0.34, 0.62),
        "metal": rng.uniform(1.3, 2.6),
        "liner": rng.uniform(0.0, 0.06),
    }
    return Hip(
        kind,
        rng.uniform(-9, 9),
        rng.uniform(14.5, 18.5),
        rng.uniform(112, 165),
        rng.uniform(3.6, 5.2),
        rng.uniform(11, 15),
        rng.uniform(13, 17.5),
        rng.uniform(25.5, 31),
        rng.uniform(2.8, 4.2),
        rng.uniform(36, 54),
        rng.uniform(10, 14),
        soft,
    )


def femur_outline(hip):
    """Closed outline of the femur, mm, before any motion; long enough to leave every view."""
    w = hip.shaft_half_width
    shaft = [(-41 - w, 115), (-40 - w, 180), (-39 - w, 340), (-39 + w, 340), (-40 + w, 180), (-40 + w, 125)]
    native = hip.kind == "native"
    top = FEMUR_NATIVE if native else FEMUR_CUT
    return smooth(top + shaft + FEMUR_MEDIAL + (FEMUR_MEDIAL_NATIVE if native else [(-22, 34)]))


def stem_edge(hip, s, side):
    """x of the stem's edge at s in [0, 1] from shoulder to tip; side -1 lateral, +1 medial."""
    centre = -41 + 2 * s
    flare = hip.stem_flare if side > 0 else 9.0
    return centre + side * (hip.stem_tip + (flare - hip.stem_tip) * (1 - s) ** (1.7 if side > 0 else 1.2))


def stem_y(hip, s):
    return 12 + s * hip.stem_length


def stem_outline(hip):
    s = np.linspace(0, 1, 24)
    lateral = np.column_stack([stem_edge(hip, s, -1), stem_y(hip, s)])
    medial = np.column_stack([stem_edge(hip, s, 1), stem_y(hip, s) + 14 * (1 - s) ** 3])
    tip = circle((stem_edge(hip, 1, 0), stem_y(hip, 1)), hip.stem_tip, 180, 0, 8)
    return np.vstack([lateral, tip, medial[::-1]])


def spacer_outline(hip):
    """Head, neck and short thick stem of cement, one polygon each."""
    end, w = 40 + 0.55 * hip.stem_length, hip.stem_tip + 4.2
    body = smooth(
        [
            (-22, 0),
            (-40, 2),
            (-52, 22),
            (-39 - w - 1, 60),
            (-39 - w, end),
            (-39, end + 7),
            (-39 + w, end),
            (-39 + w + 2, 64),
            (-24, 42),
            (-2, 16),
        ]
    )
    return [circle((0, 0), hip.cup_radius - 4), body]


def cup_axis(hip):
    """Angle in degrees of the cup's dome: up and to the midline."""
    return -hip.cup_tilt
