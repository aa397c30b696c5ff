"""Synthetic hip radiographs ("phantoms") with a mask of each finding, drawn from a seed.

These are drawings, not patients' images. Anatomy is laid out in millimetres around the centre of a
right hip (x to the patient's midline, y to the feet), seen through a random view (scale, rotation,
mirror, place), and summed up as attenuation: grey = 1 - exp(-attenuation), so metal ends near white.

    from models.demo.phantoms import draw_phantom
    phantom = draw_phantom(seed=7, findings=("fracture",), size=(900, 700))
    phantom.image          # uint8 [900, 700]
    phantom.masks          # {"fracture": bool [900, 700]}, what the heatmap should point at
    phantom.subject        # bool [900, 700], the implant (or the native hip), for classes without a finding

What the masks are: models/demo/findings.py. The same seed with `findings=()` gives the same hip, view and noise without
the finding.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from .anatomy import (
    FORAMEN,
    ILIUM,
    PUBIS_ISCHIUM,
    circle,
    cup_axis,
    ellipse8,
    femur_outline,
    motion,
    move,
    random_hip,
    ring_band,
    roughen,
    smooth,
    spacer_outline,
    square,
    stem_outline,
)
from .findings import FINDINGS, PLANS

SUPERSAMPLING_SHIFT = 4  # cv2 draws with coordinates in 1/16 pixel


@dataclass
class Phantom:
    """image: uint8 [H, W]. masks: {finding: bool [H, W]}. subject: bool [H, W]."""

    image: np.ndarray
    masks: dict
    subject: np.ndarray


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


def textures(rng):
    """Random fields of three grains, [128 or so]^2, mean 0 and about unit variance, stretched over the image."""
    grains = {"coarse": 7, "middle": 26, "fine": 110}
    return {name: rng.standard_normal((n, n)).astype(np.float32) for name, n in grains.items()}


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
        inside = [np.mean(np.all((p > low) & (p < high), axis=1)) for p in (move(r, view) for r in regions)]
        if min(inside) >= 0.9:
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
