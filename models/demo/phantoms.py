"""Synthetic hip radiographs ("phantoms") with a mask of each finding, drawn from a seed.

These are drawings, not patients' images. Anatomy is laid out in millimetres around the centre of a
right hip (x to the patient's midline, y to the feet), seen through a random view (scale, rotation,
mirror, place), and summed up as attenuation: grey = 1 - exp(-attenuation), so metal ends near white.

    from models.demo.phantoms import draw_phantom
    phantom = draw_phantom(seed=7, findings=("fracture",), size=(900, 700))
    phantom.image          # uint8 [900, 700]
    phantom.masks          # {"fracture": bool [900, 700]}, what the heatmap should point at
    phantom.subject        # bool [900, 700], the implant (or the native hip), for classes without a finding

Masks: a band around the lucent line (loosening), the displaced head and the empty cup (dislocation),
a band along the fracture, moth-eaten bone + periosteal reaction + gas (infection), the cup's inside
with the lysis around it (wear), the cement body (spacer). `native` and `normal` have no finding and
no mask. The same seed with `findings=()` gives the same hip, view and noise without the finding.
"""

from dataclasses import dataclass, field

import cv2
import numpy as np

KINDS = ("native", "normal", "stem_loose", "cup_loose", "dislocation", "fracture", "infection", "wear", "spacer")
FINDINGS = KINDS[2:]  # the kinds that have a mask
SUPERSAMPLING_SHIFT = 4  # cv2 draws with coordinates in 1/16 pixel
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
class Phantom:
    """image: uint8 [H, W]. masks: {finding: bool [H, W]}. subject: bool [H, W]."""

    image: np.ndarray
    masks: dict
    subject: np.ndarray


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


@dataclass
class Finding:
    """regions: millimetre polygons of the mask, in the femur's frame or the pelvis's; shape: what to draw."""

    regions: list
    in_femur: bool
    shape: dict


class Canvas:
    """Draws millimetre shapes into float32 layers [H, W] in [0, 1] through a view (2x3: mm -> pixel)."""

    def __init__(self, size, view, texture):
        self.size, self.view = size, view
        self.scale = float(np.sqrt(abs(np.linalg.det(view[:, :2]))))  # pixels per mm
        self.texture = {
            name: cv2.resize(field, size[::-1], interpolation=cv2.INTER_CUBIC) for name, field in texture.items()
        }

    def to_pixels(self, points):
        """[N, 2] in mm -> [N, 2] in pixels."""
        return np.asarray(points, np.float32) @ self.view[:, :2].T + self.view[:, 2]

    def _fixed(self, points):
        return np.round(self.to_pixels(points) * 2**SUPERSAMPLING_SHIFT).astype(np.int32)

    def polygon(self, points, blur=0.0):
        layer = np.zeros(self.size, np.uint8)
        cv2.fillPoly(layer, [self._fixed(points)], 255, cv2.LINE_AA, SUPERSAMPLING_SHIFT)
        return self._finish(layer, blur)

    def line(self, points, width, blur=0.0, closed=False):
        layer = np.zeros(self.size, np.uint8)
        thickness = max(1, round(width * self.scale))
        cv2.polylines(layer, [self._fixed(points)], closed, 255, thickness, cv2.LINE_AA, SUPERSAMPLING_SHIFT)
        return self._finish(layer, blur) * min(1.0, width * self.scale / thickness)

    def disk(self, centre, radius, blur=0.0):
        return self.polygon(circle(centre, radius), blur)

    def _finish(self, layer, blur):
        if blur:
            layer = cv2.GaussianBlur(layer, (0, 0), blur * self.scale)  # in 8 bits: several times faster
        return layer.astype(np.float32) / 255

    def depth(self, layer):
        """Distance in mm from the edge of a layer, inside it."""
        distance = cv2.distanceTransform((layer > 0.5).astype(np.uint8), cv2.DIST_L2, 3)
        return np.minimum(distance, 1e4) / self.scale  # a layer without an edge has distance "infinite"

    def warp(self, layer, motion):
        """Move a layer by a 2x3 millimetre motion."""
        view, inverse = square(self.view), np.linalg.inv(square(self.view))
        matrix = (view @ square(motion) @ inverse)[:2]
        return cv2.warpAffine(layer, matrix, self.size[::-1], flags=cv2.INTER_LINEAR)


# ---------------------------------------------------------------------------------------------
# small geometry


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


def textures(rng):
    """Random fields of three grains, [128 or so]^2, mean 0 and about unit variance, stretched over the image."""
    grains = {"coarse": 7, "middle": 26, "fine": 110}
    return {name: rng.standard_normal((n, n)).astype(np.float32) for name, n in grains.items()}


# ---------------------------------------------------------------------------------------------
# the hip of a seed


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


# ---------------------------------------------------------------------------------------------
# findings: what to draw, and the mask's polygons


def plan_stem_loose(rng, hip):
    a = rng.uniform(0.08, 0.45)
    b = min(1.0, a + rng.uniform(0.35, 0.6))
    sides = ((-1,), (1,), (-1, 1))[rng.integers(3)]
    widths = {side: rng.uniform(2.6, 4.6) for side in sides}
    bands, rims = [], []
    s = np.linspace(a, b, 16)
    for side, width in widths.items():
        inner = np.column_stack([stem_edge(hip, s, side) - side * 0.4, stem_y(hip, s)])
        outer = inner + np.column_stack([side * (width + 0.5 * np.sin(s * 17)), np.zeros(16)])
        bands.append(np.vstack([inner, outer[::-1]]))
        rims.append(outer + [side * 0.6, 0])
    return Finding(bands, True, {"bands": bands, "rims": rims, "depth": rng.uniform(0.72, 0.92)})


def plan_cup_loose(rng, hip):
    extent, middle = rng.uniform(75, 150), cup_axis(hip) + rng.uniform(-40, 40)
    start = max(middle - extent / 2, cup_axis(hip) - 88)
    end = min(middle + extent / 2, cup_axis(hip) + 88)
    width = rng.uniform(2.6, 4.8)
    band = ring_band((0, 0), hip.cup_radius - 0.3, hip.cup_radius + width, start, end)
    rim = circle((0, 0), hip.cup_radius + width + 0.6, start, end, 24)
    return Finding([band], False, {"bands": [band], "rims": [rim], "depth": rng.uniform(0.72, 0.92)})


def plan_dislocation(rng, hip):
    direction = np.deg2rad(rng.choice([rng.uniform(180, 285), rng.uniform(20, 75)], p=[0.75, 0.25]))
    reach = rng.uniform(38, 66)
    shift = reach * np.array([np.cos(direction), np.sin(direction)])
    shape = {"motion": motion(rng.uniform(-22, 22), shift)}
    return Finding([circle(shift, hip.head_radius + 2), circle((0, 0), hip.cup_radius)], False, shape)


def plan_fracture(rng, hip):
    y, tilt = rng.uniform(48, 60 + hip.stem_length), np.tan(np.deg2rad(rng.uniform(-48, 48)))
    x = np.linspace(-41 - hip.shaft_half_width - 14, -39 + hip.shaft_half_width + 14, 9)
    line = np.column_stack([x, y + tilt * (x + 40) + rng.normal(0, 2.2, 9)])
    shift = (rng.uniform(-5, 5), rng.uniform(0, 3))
    shape = {"line": line, "gap": rng.uniform(1.8, 3.6), "motion": motion(rng.uniform(-5, 5), shift, (-40, y))}
    inside = line[1:-1]
    return Finding([np.vstack([inside + [0, 5], inside[::-1] - [0, 5]])], True, shape)


def plan_infection(rng, hip):
    in_femur = rng.random() < 0.6
    if in_femur:
        start, length = rng.uniform(20, 20 + 0.75 * hip.stem_length), rng.uniform(38, 62)
        side, w = rng.choice([-1, 1]), hip.shaft_half_width
        edge = -40 + side * (w + np.clip(70 - start, 0, 50) * 0.12)
        centre = (edge - side * 6, start + length / 2)
        region = smooth(roughen(rng, circle(centre, 1, steps=9)[:8] * 0 + centre + ellipse8(13, length / 2), 1.6))
        gas_centre = np.array(centre) + [side * rng.uniform(17, 24), rng.uniform(-0.3, 0.3) * length]
        ys = np.linspace(start, start + length, 14)
        edges = [
            np.column_stack([np.full(14, edge + side * offset) + rng.normal(0, 0.7, 14) + side * bow(14, 2.5), ys])
            for offset in (2.0, 4.6)
        ]
    else:
        angle = np.deg2rad(cup_axis(hip) + rng.uniform(-75, 75))
        centre = (hip.cup_radius + 7) * np.array([np.cos(angle), np.sin(angle)])
        region = smooth(roughen(rng, centre + ellipse8(rng.uniform(15, 21), rng.uniform(13, 18)), 1.8))
        gas_centre = centre + rng.normal(0, 1, 2) * 4 + [-rng.uniform(10, 22), -rng.uniform(6, 16)]
        edges = []
    gas = [(gas_centre + rng.normal(0, 1, 2) * [6, 10], rng.uniform(1.4, 3.4)) for _ in range(rng.integers(6, 14))]
    cloud = circle(gas_centre, 1)
    cloud = gas_centre + (cloud - gas_centre) * [10, 15]
    shape = {"region": region, "edges": edges, "gas": gas, "threshold": rng.uniform(-0.35, 0.05)}
    return Finding([region, cloud], in_femur, shape)


def ellipse8(rx, ry):
    return circle((0, 0), 1, 0, 315, 8) * [rx, ry]


def bow(n, height):
    return height * np.sin(np.linspace(0, np.pi, n))


def plan_wear(rng, hip):
    room = hip.cup_radius - hip.cup_wall - hip.head_radius
    angle = np.deg2rad(rng.uniform(-118, -58))
    shift = room * rng.uniform(0.72, 0.98) * np.array([np.cos(angle), np.sin(angle)])
    lysis = []
    for _ in range(rng.integers(2, 5)):
        where, radius = np.deg2rad(cup_axis(hip) + rng.uniform(-85, 85)), rng.uniform(4.0, 7.5)
        lysis.append(((hip.cup_radius + radius + 1) * np.array([np.cos(where), np.sin(where)]), radius))
    regions = [circle((0, 0), hip.cup_radius - hip.cup_wall)] + [circle(c, r + 1) for c, r in lysis]
    return Finding(regions, False, {"shift": shift, "lysis": lysis})


def plan_spacer(rng, hip):
    return Finding(spacer_outline(hip), True, {})


PLANS = {
    "stem_loose": plan_stem_loose,
    "cup_loose": plan_cup_loose,
    "dislocation": plan_dislocation,
    "fracture": plan_fracture,
    "infection": plan_infection,
    "wear": plan_wear,
    "spacer": plan_spacer,
}


def random_view(rng, size, regions, hip):
    """A 2x3 mm -> pixel view that keeps at least 90 % of each region's outline in the image."""
    height, width = size
    for _ in range(400):
        field_of_view = rng.uniform(210, 330)  # mm along the square root of the area
        scale = np.sqrt(height * width) / field_of_view
        mirror = rng.choice([-1, 1])
        turn = motion(rng.uniform(-13, 13))[:, :2] @ np.diag([mirror, 1.0])
        anchor = np.array([-25, 30]) + rng.uniform(-1, 1, 2) * [25, 55]
        place = rng.uniform(0.18, 0.82, 2) * [width, height]
        view = np.column_stack([scale * turn, place - scale * turn @ anchor])
        low, high = 0.03 * np.array([width, height]), 0.97 * np.array([width, height])
        seen = [np.mean(np.all((p > low) & (p < high), axis=1)) for p in (move(r, view) for r in regions)]
        if min(seen) >= 0.9:
            break
    return view


# ---------------------------------------------------------------------------------------------
# drawing


def bone(canvas, layer, cortex, marrow, cortex_mm):
    """Attenuation of a bone: a bright rim, a plateau of marrow with trabecular texture."""
    depth = canvas.depth(layer)
    rim = np.exp(-((np.maximum(depth - 0.45 * cortex_mm, 0) / (0.75 * cortex_mm)) ** 2))
    grain = 1 + 0.13 * canvas.texture["fine"] + 0.10 * canvas.texture["middle"]
    return layer * (marrow * grain + cortex * rim)


def draw_pelvis(canvas, hip, rng):
    soft = hip.soft
    ilium = canvas.polygon(smooth(roughen(rng, ILIUM, 2.0)), 0.6)
    ring = canvas.polygon(smooth(roughen(rng, PUBIS_ISCHIUM, 1.8)), 0.6)
    hole = canvas.polygon(smooth(roughen(rng, FORAMEN, 1.5)), 0.6)
    ring = ring * (1 - hole)
    out = bone(canvas, ilium, 0.5 * soft["cortex"], 0.75 * soft["marrow"], 4)
    out += bone(canvas, ring, 0.6 * soft["cortex"], 0.7 * soft["marrow"], 4)
    roof = canvas.line(circle((0, 0), 30, -150, -20), 7, 2.5)  # the dense acetabular roof
    sacrum = canvas.polygon(smooth([(86, -190), (140, -190), (132, -110), (104, -70), (88, -110)]), 4)
    return out + 0.22 * roof + 0.3 * sacrum


def draw_soft_tissue(canvas, hip, rng):
    """Thigh and buttock, air beyond the skin, fat planes and bowel gas."""
    x = hip.soft["lateral"]
    outline = [
        (-x, -220),
        (-x - 8, -60),
        (-x - 4, 40),
        (-x + 12, 200),
        (-x + 20, 420),
        (64, 420),
        (78, 230),
        (96, 140),
        (150, 110),
        (400, 60),
        (400, -300),
        (-x, -300),
    ]
    layer = canvas.polygon(smooth(roughen(rng, outline, 4)), 2.5)
    thick = 1 - 0.55 * np.exp(-canvas.depth(layer) / 34)
    out = hip.soft["density"] * layer * thick * (1 + 0.10 * canvas.texture["coarse"] + 0.02 * canvas.texture["middle"])
    for _ in range(rng.integers(0, 5)):  # bowel gas, on the midline side, far from the implant
        out *= 1 - 0.35 * canvas.polygon(
            smooth(roughen(rng, (rng.uniform(80, 150), rng.uniform(-150, -60)) + ellipse8(12, 9), 3)), 3
        )
    for _ in range(rng.integers(0, 3)):  # skin folds
        y = rng.uniform(-60, 220)
        out += 0.05 * canvas.line([(-160, y), (120, y + rng.uniform(-60, 60))], 5, 3)
    return out


def draw_lucency(canvas, total, shape, femur_motion):
    """A smooth lucent band with a thin sclerotic rim: loosening."""
    for band, rim in zip(shape["bands"], shape["rims"], strict=True):
        total *= 1 - shape["depth"] * canvas.polygon(move(band, femur_motion), 0.35)
        total += 0.22 * canvas.line(move(rim, femur_motion), 1.2, 0.5)
    return total


def draw_fracture(canvas, femur, shape, femur_motion):
    """Cut the femur along the line, move the part below it, leave a dark gap."""
    line = shape["line"]
    below = canvas.polygon(move(np.vstack([line, [(40, 500), (-140, 500)]]), femur_motion))
    inverse = np.linalg.inv(square(femur_motion))
    shift = (square(femur_motion) @ square(shape["motion"]) @ inverse)[:2]
    femur = femur * (1 - below) + canvas.warp(femur * below, shift)
    return femur * (1 - 0.92 * canvas.line(move(line, femur_motion), shape["gap"], 0.25))


def draw_infection(canvas, bones, soft, shape, femur_motion):
    """Moth-eaten bone, layered periosteal reaction, gas in the soft tissue."""
    envelope = canvas.polygon(move(shape["region"], femur_motion), 1.8)
    field = 0.75 * canvas.texture["lysis"]
    holes = 1 / (1 + np.exp(-9 * (field - shape["threshold"])))
    bones = bones * (1 - 0.9 * envelope * holes)
    for edge in shape["edges"]:
        bones = bones + 0.30 * canvas.line(move(edge, femur_motion), 1.5, 0.5)
    for centre, radius in shape["gas"]:
        bubble = canvas.disk(move([centre], femur_motion)[0], radius, 0.4)
        soft, bones = soft * (1 - 0.75 * bubble), bones * (1 - 0.4 * bubble)
    return bones, soft


def draw_wear_lysis(canvas, bones, shape):
    for centre, radius in shape["lysis"]:
        bones = bones * (1 - 0.80 * canvas.disk(centre, radius, 0.5))
        bones = bones + 0.22 * canvas.line(circle(centre, radius + 0.6), 1.2, 0.4)
    return bones


def draw_implant(canvas, hip, femur_motion, head_shift, extras):
    """Metal attenuation and the implant's outline layer. head_shift: mm, the head's place in the cup (wear)."""
    stem = canvas.polygon(move(stem_outline(hip), femur_motion))
    head = move([head_shift], femur_motion)[0]
    shoulder = move([(-38, 26)], femur_motion)[0]
    neck = canvas.line([head, shoulder], hip.neck_width)
    ball = canvas.disk(head, hip.head_radius)
    axis = cup_axis(hip)
    shell = canvas.polygon(ring_band((0, 0), hip.cup_radius - hip.cup_wall, hip.cup_radius, axis - 88, axis + 88))
    across = np.deg2rad(axis + 90)
    a = np.array([np.cos(across), np.sin(across)])
    b = np.array([np.cos(np.deg2rad(axis)), np.sin(np.deg2rad(axis))])
    t = np.linspace(0, 2 * np.pi, 48)[:, None]
    mouth = hip.cup_radius * (np.cos(t) * a + extras["version"] * np.sin(t) * b)  # the rim, an ellipse by anteversion
    liner = canvas.disk((0, 0), hip.cup_radius - hip.cup_wall)
    metal = np.maximum.reduce([stem, neck * 0.85, ball, shell * 0.72, 0.3 * canvas.line(mouth, 1.4, closed=True)])
    for screw in extras["screws"]:
        metal = np.maximum(metal, 0.75 * canvas.line(screw, 3.2))
    for wire in extras["wires"]:
        metal = np.maximum(metal, 0.7 * canvas.line(move(wire, femur_motion), 1.5))
    outline = np.maximum.reduce([stem, neck, ball, shell])
    return hip.soft["metal"] * metal * (1 + 0.04 * canvas.texture["coarse"]) + hip.soft["liner"] * liner, outline


def draw_spacer(canvas, hip, femur_motion):
    parts = [canvas.polygon(move(part, femur_motion), 0.3) for part in spacer_outline(hip)]
    body = np.maximum.reduce(parts)
    rod = canvas.line(move([(-4, 4), (-34, 28), (-40, 50 + 0.4 * hip.stem_length)], femur_motion), 3.4)
    cement = 0.75 + 0.12 * canvas.texture["middle"] + 0.06 * canvas.texture["fine"]
    return np.maximum(body * cement, hip.soft["metal"] * rod), body


def random_extras(rng, hip):
    """Cup screws, cerclage wires, anteversion: things on the image that are no finding."""
    screws, wires = [], []
    for _ in range(rng.choice([0, 1, 2], p=[0.65, 0.25, 0.1])):
        angle = np.deg2rad(cup_axis(hip) + rng.uniform(-45, 30))
        ray = np.array([np.cos(angle), np.sin(angle)])
        screws.append([ray * (hip.cup_radius - 2), ray * (hip.cup_radius + rng.uniform(14, 30))])
    if rng.random() < 0.22:
        y, w = rng.uniform(50, 150), hip.shaft_half_width + 2
        for k in range(rng.integers(1, 4)):
            wires.append([(-40 - w, y + 12 * k), (-40, y + 12 * k + rng.uniform(-3, 3)), (-40 + w, y + 12 * k + 1)])
    return {"screws": screws, "wires": wires, "version": rng.uniform(0.1, 0.4)}


def to_grey(attenuation, canvas, rng):
    """Attenuation -> uint8 image: blur, window, gamma, noise, side marker, collimation."""
    height, width = canvas.size
    blurred = cv2.GaussianBlur(attenuation, (0, 0), rng.uniform(0.25, 0.6) * canvas.scale)
    grey = 1 - np.exp(-rng.uniform(0.95, 1.35) * blurred)
    low, high = rng.uniform(0.0, 0.1), rng.uniform(0.86, 0.98)
    grey = np.clip((grey - low) / (high - low), 0, 1) ** rng.uniform(0.85, 1.35)
    amount = rng.uniform(0.008, 0.03)
    noise = rng.standard_normal((height, width), dtype=np.float32)
    grey += amount * cv2.GaussianBlur(noise, (0, 0), 0.7) * 1.6
    if rng.random() < 0.4:
        marker = (rng.uniform(0.05, 0.92) * width, rng.uniform(0.08, 0.95) * height)
        size = 0.0016 * np.sqrt(height * width)
        letter = np.zeros((height, width), np.uint8)
        cv2.putText(
            letter,
            "RL"[rng.integers(2)],
            (int(marker[0]), int(marker[1])),
            cv2.FONT_HERSHEY_SIMPLEX,
            size,
            230,
            max(1, round(2.2 * size)),
            cv2.LINE_AA,
        )
        grey = np.maximum(grey, letter / np.float32(255))
    if rng.random() < 0.25:  # collimation
        left, right = (int(f * width) for f in rng.uniform(0, 0.07, 2))
        grey[:, :left] *= 0.1
        grey[:, width - right :] *= 0.1
    return np.clip(np.round(grey * 255), 0, 255).astype(np.uint8)


def draw_phantom(seed, findings=(), size=(448, 448), native=False, view_for=None):
    """Draw one synthetic radiograph.

    seed: int. findings: names out of FINDINGS, () for a well-fixed prosthesis; "spacer" stands alone.
    size: (height, width) in pixels. native: a hip without implant. view_for: findings that the view must
    contain (default: `findings`), so that the pair of an image can be drawn without its finding.
    """
    streams = [np.random.default_rng([seed, k]) for k in range(8)]
    planned = tuple(view_for if view_for is not None else findings)
    hip = random_hip(streams[0], "native" if native else "spacer" if "spacer" in findings else "prosthesis")
    plans = {name: PLANS[name](np.random.default_rng([seed, 100 + FINDINGS.index(name)]), hip) for name in planned}
    displaced = plans["dislocation"].shape["motion"] if "dislocation" in findings else motion()
    femur_motion = square(motion(hip.femur_turn)) if "dislocation" not in findings else square(displaced)
    femur_motion = femur_motion[:2]
    regions = {
        name: [move(r, femur_motion) if plan.in_femur else r for r in plan.regions] for name, plan in plans.items()
    }
    target = [r for region in regions.values() for r in region] or [circle((0, 0), 22)]
    view = random_view(streams[1], size, target, hip)
    fields = textures(streams[2])
    fields["lysis"] = cv2.GaussianBlur(streams[7].standard_normal((90, 90)).astype(np.float32), (0, 0), 0.9) * 3
    canvas = Canvas(size, view.astype(np.float32), fields)
    shapes = {name: plans[name].shape for name in findings}
    attenuation, subject = compose(canvas, hip, shapes, femur_motion, plans, streams)
    masks = {name: np.maximum.reduce([canvas.polygon(r) for r in regions[name]]) > 0.5 for name in findings}
    return Phantom(to_grey(attenuation, canvas, streams[6]), masks, subject > 0.5)


def compose(canvas, hip, shapes, femur_motion, plans, streams):
    """Sum of all attenuations [H, W], and the layer of the implant (or native joint)."""
    soft = draw_soft_tissue(canvas, hip, streams[3])
    pelvis = draw_pelvis(canvas, hip, streams[4])
    outline = canvas.polygon(move(femur_outline(hip), femur_motion), 0.4)
    femur = bone(canvas, outline, hip.soft["cortex"], hip.soft["marrow"], 6.5)
    if hip.kind == "native":
        ball = canvas.disk((0, 0), 23.5, 0.4)
        femur = np.maximum(femur, bone(canvas, ball, 0.5 * hip.soft["cortex"], hip.soft["marrow"] * 1.1, 3))
        socket = canvas.line(circle((0, 0), 26, -160, 40), 2.6, 0.7)
        return soft + 0.9 * pelvis * (1 - 0.35 * socket) + femur, canvas.disk((-12, 6), 34)
    if "stem_loose" in shapes:
        femur = draw_lucency(canvas, femur, shapes["stem_loose"], femur_motion)
    if "fracture" in shapes:
        femur = draw_fracture(canvas, femur, shapes["fracture"], femur_motion)
    if "cup_loose" in shapes:
        pelvis = draw_lucency(canvas, pelvis, shapes["cup_loose"], motion())
    if "wear" in shapes:
        pelvis = draw_wear_lysis(canvas, pelvis, shapes["wear"])
    bones = pelvis + femur
    if "infection" in shapes:
        where = femur_motion if plans["infection"].in_femur else motion()
        bones, soft = draw_infection(canvas, bones, soft, shapes["infection"], where)
    if hip.kind == "spacer":
        metal, layer = draw_spacer(canvas, hip, femur_motion)
        return soft + bones * (1 - 0.5 * layer) + metal, layer
    shift = shapes["wear"]["shift"] if "wear" in shapes else (0, 0)
    metal, layer = draw_implant(canvas, hip, femur_motion, shift, random_extras(streams[5], hip))
    return soft + bones + metal, layer
