"""What can be wrong with a hip: each finding's plan, what is drawn and the polygons of its mask.

Masks: a band around the lucent line (loosening), the displaced head and the empty cup (dislocation), a band along the
fracture, moth-eaten bone + periosteal reaction + gas (infection), the cup's inside with the lysis around it (wear), the
cement body (spacer). `native` and `normal` have no finding and no mask.
"""

from dataclasses import dataclass

import numpy as np

from .anatomy import circle, cup_axis, ellipse8, motion, ring_band, roughen, smooth, spacer_outline, stem_edge, stem_y

KINDS = ("native", "normal", "stem_loose", "cup_loose", "dislocation", "fracture", "infection", "wear", "spacer")
FINDINGS = KINDS[2:]  # the kinds that have a mask


@dataclass
class Finding:
    """regions: millimetre polygons of the mask, in the femur's frame or the pelvis's; shape: what to draw."""

    regions: list
    in_femur: bool
    shape: dict


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
