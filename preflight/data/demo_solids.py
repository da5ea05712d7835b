"""The solids of the demo scene: convex bodies made of quadrilaterals, placed in the world for every frame at once."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from preflight.data.demo_motion import CUP_HEIGHT, HAND, LIGHTER_LENGTH, Episode, arm_frames

Colour = tuple[int, int, int]

_GRAPHITE: Colour = (52, 54, 60)
_SERVO: Colour = (34, 35, 40)
_STEEL: Colour = (172, 176, 182)
_FINGER: Colour = (232, 228, 218)
_ACCENT: tuple[Colour, Colour] = (
    (38, 108, 190),
    (214, 92, 36),
)  # the left arm's rings are blue, the right arm's orange
_LIGHTERS: tuple[Colour, ...] = ((216, 38, 44), (250, 196, 24), (34, 156, 84), (236, 94, 20), (60, 84, 214))
_CUPS: tuple[Colour, ...] = ((238, 234, 226), (72, 132, 176), (226, 158, 66), (116, 160, 132), (206, 100, 92))

_SIDES = 8
_CUP_SIDES = 20


@dataclass(frozen=True, kw_only=True)
class Solid:
    """A convex body in all frames. ``n`` frames, ``f`` faces; corners run so that the cross product points outwards."""

    name: str
    corners: np.ndarray  # float64[n, f, 4, 3]
    colour: np.ndarray  # float64[f, 3], 0 to 255
    nearer: float = 0.0  # metres to take off its distance when bodies are sorted, for the wall of the cup
    within: str = ""  # sorted by the distance of this other body (the lighter: while it is inside the cup)
    spread: float = 0.0  # how much of its own distance beyond the other body's still counts
    shadow: bool = True


def _box(low: tuple[float, float, float], high: tuple[float, float, float]) -> np.ndarray:
    """``[6, 4, 3]``."""
    x, y, z = zip(low, high, strict=True)
    corner = np.array([[x[i], y[j], z[k]] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
    faces = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    return corner[np.array(faces)]


def _ring(axis: int, at: float, radius: float, sides: int) -> np.ndarray:
    """``[sides, 3]``, counter-clockwise about a coordinate axis."""
    angle = 2 * np.pi * np.arange(sides) / sides
    ring = np.full((sides, 3), float(at))
    ring[:, (axis + 1) % 3], ring[:, (axis + 2) % 3] = radius * np.cos(angle), radius * np.sin(angle)
    return ring


def _wall(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """``[sides, 4, 3]`` between two rings, facing out of a body whose axis runs from low to high."""
    return np.stack([low, np.roll(low, -1, axis=0), np.roll(high, -1, axis=0), high], axis=1)


def _disc(ring: np.ndarray) -> np.ndarray:
    """``[sides / 2 - 1, 4, 3]``, facing along the axis of the ring."""
    first = np.arange(1, len(ring) - 2, 2)
    return ring[np.stack([np.zeros_like(first), first, first + 1, first + 2], axis=1)]


def _rod(axis: int, start: float, end: float, radius: float, end_radius: float | None = None) -> np.ndarray:
    low = _ring(axis, start, radius, _SIDES)
    high = _ring(axis, end, radius if end_radius is None else end_radius, _SIDES)
    return np.concatenate([_wall(low, high), _disc(low)[:, ::-1], _disc(high)])


def _placed(local: np.ndarray, origin: np.ndarray, turned: np.ndarray) -> np.ndarray:
    """Faces ``[f, 4, 3]`` into the world: ``[n, f, 4, 3]``."""
    return origin[:, None, None] + np.einsum("nij,fkj->nfki", turned, local)


def _colour(faces: np.ndarray, colour: Colour) -> np.ndarray:
    return np.broadcast_to(np.array(colour, dtype=np.float64), (len(faces), 3))


def _tone(colour: Colour, factor: float) -> Colour:
    red, green, blue = (min(255, int(factor * value)) for value in colour)
    return red, green, blue


def arm_solids(arm: int, joints: np.ndarray) -> list[Solid]:
    """The links of one arm; names start with ``left`` or ``right``. ``joints`` is ``[n, 7]``."""
    side, links = ("left", "right")[arm], arm_frames(arm, joints)
    parts: list[tuple[str, str, np.ndarray, Colour]] = [
        ("foot", "base", _box((-0.075, -0.065, 0.0), (0.075, 0.065, 0.03)), _GRAPHITE),
        ("column", "base", _rod(2, 0.03, 0.115, 0.05, 0.042), _SERVO),
        ("shoulder", "upper", _rod(1, -0.05, 0.05, 0.038), _SERVO),
        ("shoulder ring", "upper", _disc(_ring(1, -0.051, 0.027, _SIDES))[:, ::-1], _ACCENT[arm]),
        ("shoulder ring", "upper", _disc(_ring(1, 0.051, 0.027, _SIDES)), _ACCENT[arm]),
        ("upper", "upper", _rod(0, 0.03, 0.29, 0.027, 0.023), _GRAPHITE),
        ("elbow", "fore", _rod(1, -0.04, 0.04, 0.031), _SERVO),
        ("elbow ring", "fore", _disc(_ring(1, -0.041, 0.021, _SIDES))[:, ::-1], _ACCENT[arm]),
        ("elbow ring", "fore", _disc(_ring(1, 0.041, 0.021, _SIDES)), _ACCENT[arm]),
        ("fore", "fore", _rod(0, 0.025, 0.285, 0.023, 0.019), _GRAPHITE),
        ("wrist", "hand", _rod(1, -0.032, 0.032, 0.024), _SERVO),
        ("hand", "hand", _box((0.015, -0.028, -0.018), (0.078, 0.028, 0.018)), _GRAPHITE),
        ("rail", "hand", _box((0.074, -0.048, -0.010), (0.088, 0.048, 0.010)), _STEEL),
        ("camera", "hand", _box((0.020, -0.022, 0.030), (0.045, 0.022, 0.055)), _ACCENT[arm]),
    ]
    solids = [
        Solid(
            name=f"{side} {name}",
            corners=_placed(local, *links[link]),
            colour=_colour(local, colour),
            shadow=name not in ("shoulder ring", "elbow ring", "rail", "foot"),
        )
        for name, link, local, colour in parts
    ]
    origin, turned = links["hand"]
    for sign in (-1.0, 1.0):
        inner = 0.003 + 0.036 * joints[:, 6]
        low, high = (0.086, 0.0, -0.009), (HAND + 0.004, 0.009, 0.009)
        finger = _box(low, high) if sign > 0 else _box((low[0], -high[1], low[2]), (high[0], 0.0, high[2]))
        solids.append(
            Solid(
                name=f"{side} finger",
                corners=_placed(finger, origin + sign * inner[:, None] * turned[..., 1], turned),
                colour=_colour(finger, _FINGER),
            )
        )
    return solids


def lighter_solids(episode: Episode) -> list[Solid]:
    """The lighter: body, metal cap and button."""
    half, colour = LIGHTER_LENGTH / 2, _LIGHTERS[episode.style % len(_LIGHTERS)]
    parts = [
        (_box((-half, -0.012, -0.008), (half - 0.022, 0.012, 0.008)), colour, 0.0),
        (_box((half - 0.022, -0.011, -0.007), (half - 0.004, 0.011, 0.007)), _STEEL, 0.0005),
        (_box((half - 0.013, -0.006, -0.006), (half + 0.002, 0.010, 0.006)), _SERVO, 0.0010),
    ]
    return [
        Solid(
            name="lighter",
            corners=_placed(local, episode.lighter, episode.lighter_frame),
            colour=_colour(local, tint),
            nearer=nearer,
            within="cup",
            shadow=nearer == 0.0,
        )
        for local, tint, nearer in parts
    ]


def cup_solids(episode: Episode) -> list[Solid]:
    """The cup, in one frame only (``n`` = 1), as it stands still: far wall, contents and near wall are sorted so."""
    glaze = _CUPS[(episode.style // 8) % len(_CUPS)]
    band = _tone(glaze, 0.55) if sum(glaze) > 600 else _CUPS[0]
    heights, radii = (0.0, 0.030, 0.046, CUP_HEIGHT), (0.031, 0.0355, 0.0375, 0.043)
    rings = [_ring(2, z, r, _CUP_SIDES) for z, r in zip(heights, radii, strict=True)]
    inner_low, inner_high = _ring(2, 0.008, 0.028, _CUP_SIDES), _ring(2, CUP_HEIGHT, 0.0395, _CUP_SIDES)
    inside = np.concatenate([_wall(inner_low, inner_high)[:, ::-1], _disc(inner_low)])
    bands = [_wall(rings[0], rings[1]), _wall(rings[1], rings[2]), _wall(rings[2], rings[3])]
    outside = np.concatenate(bands)
    tints = np.concatenate([_colour(b, c) for b, c in zip(bands, (glaze, band, glaze), strict=True)])
    rim = _wall(rings[3], inner_high)
    handle = _handle()

    origin = episode.cup[None]
    turned = np.array(
        [[[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1.0]] for a in [episode.cup_turn]]
    )
    parts = [
        ("cup inside", inside, _colour(inside, _tone(glaze, 0.62)), -0.03, False),
        ("cup handle", handle, _colour(handle, glaze), 0.0, False),
        ("cup", outside, tints, 0.03, True),
        ("cup rim", rim, _colour(rim, _tone(glaze, 1.08)), 0.031, False),
    ]
    return [
        Solid(
            name=name,
            corners=_placed(faces, origin, turned),
            colour=colour,
            nearer=nearer,
            within="" if name == "cup" else "cup",
            spread=2.5 if name == "cup handle" else 0.0,
            shadow=shadow,
        )
        for name, faces, colour, nearer, shadow in parts
    ]


def _handle() -> np.ndarray:
    """Half a ring of square section on the +x side of the cup."""
    angle = np.linspace(-np.pi / 2, np.pi / 2, 7)
    square = np.array([(-0.004, -0.0045), (0.004, -0.0045), (0.004, 0.0045), (-0.004, 0.0045)])
    out = 0.039 + (0.024 + square[None, :, 0]) * np.cos(angle)[:, None]
    up = 0.046 + (0.024 + square[None, :, 0]) * np.sin(angle)[:, None]
    rings = np.stack([out, np.broadcast_to(square[:, 1], out.shape), up], axis=-1)
    return np.concatenate([_wall(low, high)[:, ::-1] for low, high in pairwise(rings)])
