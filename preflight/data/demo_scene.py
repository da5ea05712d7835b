"""The pictures of the demo: a table, two arms, a lighter and a cup, seen by one fixed and two wrist cameras.

Bodies are projected, lit and sorted for many frames at once in numpy; Pillow only fills the quadrilaterals.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from preflight.data.demo_motion import Episode, arm_frames
from preflight.data.demo_solids import Solid, arm_solids, cup_solids, lighter_solids

CAMERAS = ("observation.images.cam_high", "observation.images.cam_left_wrist", "observation.images.cam_right_wrist")

_LIGHT = np.array([-0.35, -0.30, 0.89])  # a lamp to the left of the viewer
_SHINE = np.array([-0.20, -0.45, 0.87])  # half-way between the lamp and the viewer
_NEAR = 0.025  # metres; bodies nearer than this to a camera are left out
_TEXELS = 640  # a metre
_TABLE_LEFT, _TABLE_FAR = -1.1, 1.1  # the corner of the texture
_TABLE_SIZE = (2.2, 1.9)
_OVERSAMPLE = 2
_GRAIN_MARGIN = 64
_SHADOW_STRENGTH = 105


@dataclass(frozen=True, kw_only=True)
class Camera:
    """A pinhole in every frame; ``n`` is 1 where it stands still."""

    at: np.ndarray  # float64[n, 3]
    axes: np.ndarray  # float64[n, 3, 3], rows: right, down, forward
    focal: float  # pixels


def _looking(at: np.ndarray, target: np.ndarray, up: np.ndarray) -> np.ndarray:
    forward = target - at
    forward /= np.linalg.norm(forward, axis=-1, keepdims=True)
    right = np.cross(forward, up)
    right /= np.linalg.norm(right, axis=-1, keepdims=True)
    return np.stack([right, np.cross(forward, right), forward], axis=-2)


def cameras(episode: Episode, start: int, stop: int, resolution: tuple[int, int]) -> list[Camera]:
    """The three cameras in the order of CAMERAS, for frames start to stop; resolution is (height, width)."""
    scale = max(resolution[1], resolution[0] * 4 / 3)
    jitter = np.array([(episode.style % 97) / 97 - 0.5, (episode.style % 89) / 89 - 0.5, 0.0]) * 0.012
    at = np.array([[0.0, -0.66, 0.84]]) + jitter
    high = Camera(
        at=at, axes=_looking(at, np.array([[0.0, -0.02, 0.07]]), np.array([0.0, 0.0, 1.0])), focal=0.84 * scale
    )
    wrists = []
    for arm in (0, 1):
        tip, turned = arm_frames(arm, episode.joints[start:stop, 7 * arm : 7 * arm + 7])["tip"]
        at = tip - 0.145 * turned[..., 0] + 0.062 * turned[..., 2]
        wrists.append(
            Camera(at=at, axes=_looking(at, tip + 0.065 * turned[..., 0], turned[..., 2]), focal=0.66 * scale)
        )
    return [high, *wrists]


@lru_cache(maxsize=1)
def table() -> Image.Image:
    """The table seen from above, with a cutting mat and the floor around it; Pillow's RGB, _TEXELS a metre."""
    rng = np.random.default_rng(7)
    width, height = (int(size * _TEXELS) for size in _TABLE_SIZE)
    x = _TABLE_LEFT + (np.arange(width, dtype=np.float32) + 0.5)[None, :] / _TEXELS
    y = _TABLE_FAR - (np.arange(height, dtype=np.float32) + 0.5)[:, None] / _TEXELS
    lamp = 1.10 - 0.32 * ((x + 0.25) ** 2 + (y + 0.15) ** 2)

    def blotches(shape: tuple[int, int], rows: int, columns: int, contrast: float) -> np.ndarray:
        noise = rng.normal(0.0, contrast, (shape[0] // rows + 1, shape[1] // columns + 1)).astype(np.float32)
        return np.asarray(Image.fromarray(noise).resize(shape[::-1], Image.Resampling.BILINEAR))

    def region(left: float, right: float, near: float, far: float) -> tuple[slice, slice]:
        columns, rows = (
            np.flatnonzero((x[0] >= left) & (x[0] < right)),
            np.flatnonzero((y[:, 0] >= near) & (y[:, 0] < far)),
        )
        return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)

    picture = np.empty((height, width, 3), dtype=np.uint8)

    def cover(where: tuple[slice, slice], tone: np.ndarray, colour: tuple[int, int, int]) -> None:
        for channel, value in enumerate(colour):
            picture[where][..., channel] = np.minimum(tone * lamp[where] * value, 255.0)

    carpet = blotches((height, width), 4, 4, 0.05) + blotches((height, width), 40, 40, 0.06)
    cover((slice(None), slice(None)), 1.0 + carpet, (74, 80, 90))

    wood = region(-0.80, 0.80, -0.60, 0.47)
    cover(wood, np.full_like(lamp[wood], 0.62), (188, 148, 104))
    wood = region(-0.785, 0.785, -0.585, 0.455)
    shape = lamp[wood].shape
    plank = (y[wood[0]] + 0.04) / 0.14
    tones = rng.normal(1.0, 0.035, 16).astype(np.float32)[np.floor(plank).astype(int)]
    seam = np.where(np.abs(plank - np.round(plank)) < 0.007, 0.72, 1.0).astype(np.float32)
    cover(wood, (tones + blotches(shape, 2, 60, 0.035) + blotches(shape, 12, 170, 0.045)) * seam, (188, 148, 104))

    mat = region(-0.30, 0.30, -0.21, 0.19)
    u, v = x[:, mat[1]] / 0.05, (y[mat[0]] + 0.01) / 0.05
    drawn = (
        (np.abs(u - np.round(u)) < 0.02) | (np.abs(v - np.round(v)) < 0.02) | (np.abs(u) > 5.84) | (np.abs(v) > 3.84)
    )
    cloth = 1.0 + blotches(drawn.shape, 3, 3, 0.03)
    cover(mat, np.where(drawn, 1.85, 1.0).astype(np.float32) * cloth, (64, 82, 84))
    return Image.fromarray(picture)


@lru_cache(maxsize=4)
def _grain(height: int, width: int) -> np.ndarray:
    """Sensor noise, ``int16[height + margin, width + margin, 3]``; frames take crops of it."""
    rng = np.random.default_rng(11)
    shape = (height + _GRAIN_MARGIN, width + _GRAIN_MARGIN)
    luma, chroma = rng.normal(0.0, 2.6, (*shape, 1)), rng.normal(0.0, 1.3, (*shape, 3))
    return np.rint(luma + chroma).astype(np.int16)


@lru_cache(maxsize=4)
def _lens(height: int, width: int, exposure: float) -> np.ndarray:
    """Exposure and vignette: ``uint16[height, width, 3]``, in 1/256, at most 256 so that the product fits."""
    y = (np.arange(height)[:, None] + 0.5) / height * 2 - 1
    x = (np.arange(width)[None, :] + 0.5) / width * 2 - 1
    light = np.rint(256 * exposure * (1 - 0.11 * (x**2 + y**2) ** 1.2))
    return np.repeat(np.minimum(light, 256)[..., None], 3, axis=2).astype(np.uint16)


def _table_view(camera: Camera, frame: int, resolution: tuple[int, int], filtered: bool) -> Image.Image:
    """What the camera sees of the table plane."""
    height, width = resolution
    at, axes = camera.at[frame], camera.axes[frame]
    rays = axes.T @ np.array(
        [[1 / camera.focal, 0, -width / 2 / camera.focal], [0, 1 / camera.focal, -height / 2 / camera.focal], [0, 0, 1]]
    )
    # A ray d from c meets the table at c - d * c_z / d_z; in homogeneous pixels both coordinates are linear.
    x = at[0] * rays[2] - at[2] * rays[0]
    y = at[1] * rays[2] - at[2] * rays[1]
    matrix = np.stack([(x - _TABLE_LEFT * rays[2]) * _TEXELS, (_TABLE_FAR * rays[2] - y) * _TEXELS, rays[2]])
    matrix /= matrix[2, 2]
    return table().transform(
        (width, height),
        Image.Transform.PERSPECTIVE,
        matrix.ravel()[:8].tolist(),
        Image.Resampling.BILINEAR if filtered else Image.Resampling.NEAREST,
        fillcolor=(52, 56, 64),
    )


@dataclass(frozen=True, kw_only=True)
class _Faces:
    """All faces that a camera could see, ready to fill: ``f`` faces, ``n`` frames."""

    corners: np.ndarray  # float32[n, f, 8], pixels
    visible: np.ndarray  # bool[n, f]
    distance: np.ndarray  # float32[n, f], equal for all faces of a body
    ink: np.ndarray  # int64[n, f], as Pillow packs it


def _project(points: np.ndarray, camera: Camera, resolution: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Pixels ``[n, ..., 2]`` and depths ``[n, ...]`` of world points ``[n, ..., 3]``; broadcasts a single frame."""
    extra = points.ndim - 2
    at = camera.at.reshape(-1, *[1] * extra, 3)
    seen = np.matmul((points - at).reshape(max(len(points), len(at)), -1, 3), camera.axes.transpose(0, 2, 1))
    seen = seen.reshape(-1, *points.shape[1:])
    depth = seen[..., 2]
    pixels = seen[..., :2] * (camera.focal / np.maximum(depth, 1e-3))[..., None]
    return pixels + np.array([resolution[1] / 2, resolution[0] / 2]), depth


def _faces(solids: list[Solid], inside: np.ndarray, camera: Camera, resolution: tuple[int, int]) -> _Faces:
    """Projects, lights, culls and sorts. ``inside[n]`` says in which frames the lighter is inside the cup."""
    frames = len(inside)
    count = [solid.corners.shape[1] for solid in solids]
    corners = np.concatenate([np.broadcast_to(s.corners, (frames, *s.corners.shape[1:])) for s in solids], axis=1)
    normal = np.cross(corners[:, :, 1] - corners[:, :, 0], corners[:, :, 3] - corners[:, :, 0])
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True) + 1e-12
    towards = camera.at[:, None] - corners[:, :, 0]
    pixels, depth = _project(corners, camera, resolution)

    body = np.repeat(np.arange(len(solids)), count)
    centre = np.stack(
        [s.corners.reshape(len(s.corners), -1, 3).mean(axis=1).repeat(frames // len(s.corners), 0) for s in solids], 1
    )
    away = np.linalg.norm(centre - camera.at[:, None], axis=-1)
    names = [solid.name for solid in solids]
    for k, solid in enumerate(solids):
        if solid.within:
            same = inside if solid.name == "lighter" else np.ones(frames, dtype=bool)
            other = away[:, names.index(solid.within)]
            away[:, k] = np.where(same, other + solid.spread * (away[:, k] - other), away[:, k])
    away -= np.array([solid.nearer for solid in solids])

    nearest = np.minimum.reduceat(depth.min(axis=2), np.cumsum([0, *count[:-1]]), axis=1)
    visible = ((towards * normal).sum(axis=-1) > 0) & (nearest[:, body] > _NEAR) & _on_screen(pixels, resolution)

    lit = 0.50 + 0.58 * np.maximum(normal @ _LIGHT, 0.0) + 0.10 * normal[..., 2]
    colour = np.concatenate([solid.colour for solid in solids])
    shine = 90.0 * np.maximum(normal @ _SHINE, 0.0) ** 24
    rgb = np.clip(colour * lit[..., None] + shine[..., None], 0, 255).astype(np.int64)
    return _Faces(
        corners=(pixels * _OVERSAMPLE).reshape(frames, -1, 8).astype(np.float32),
        visible=visible,
        distance=away[:, body].astype(np.float32),
        ink=rgb[..., 0] | rgb[..., 1] << 8 | rgb[..., 2] << 16,
    )


def _shadows(
    solids: list[Solid], frames: int, camera: Camera, resolution: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """What the lamp sees, laid on the table: pixels ``float32[n, f, 8]`` and which faces count ``bool[n, f]``."""
    casting = [solid for solid in solids if solid.shadow]
    corners = np.concatenate([np.broadcast_to(s.corners, (frames, *s.corners.shape[1:])) for s in casting], axis=1)
    normal = np.cross(corners[:, :, 1] - corners[:, :, 0], corners[:, :, 3] - corners[:, :, 0])
    flat = corners - corners[..., 2:] * (_LIGHT / _LIGHT[2])
    pixels, depth = _project(flat, camera, resolution)
    counts = (normal @ _LIGHT > 0) & (depth.min(axis=2) > _NEAR) & _on_screen(pixels, resolution)
    return pixels.reshape(frames, -1, 8).astype(np.float32), counts


def _on_screen(pixels: np.ndarray, resolution: tuple[int, int]) -> np.ndarray:
    """Which faces ``[n, f, 4, 2]`` touch the picture, by their bounding boxes."""
    low, high = pixels.min(axis=2), pixels.max(axis=2)
    return (high[..., 0] > 0) & (low[..., 0] < resolution[1]) & (high[..., 1] > 0) & (low[..., 1] < resolution[0])


def draw_frames(episode: Episode, start: int, stop: int, resolution: tuple[int, int]) -> dict[str, np.ndarray]:
    """Draws a stretch of an episode.

    Args:
        episode: What happens.
        start: First frame.
        stop: One past the last frame. The same frame looks the same whatever stretch it is drawn in.
        resolution: (height, width) in pixels.

    Returns:
        For each of CAMERAS, ``uint8[stop - start, height, width, 3]``.
    """
    window = slice(start, stop)
    near_cup = np.hypot(*(episode.lighter[window, :2] - episode.cup[:2]).T) < 0.06
    inside = near_cup & (episode.lighter[window, 2] < 0.16)
    moving = replace(episode, lighter=episode.lighter[window], lighter_frame=episode.lighter_frame[window])
    arms = [arm_solids(arm, episode.joints[window, 7 * arm : 7 * arm + 7]) for arm in (0, 1)]
    things = lighter_solids(moving) + cup_solids(episode)
    pictures = {}
    for index, (name, camera) in enumerate(zip(CAMERAS, cameras(episode, start, stop, resolution), strict=True)):
        # A wrist camera sits on the hand: of its own arm it sees the fingers and the rail they run on.
        own = [] if index == 0 else [s for s in arms[index - 1] if s.name.endswith(("finger", "rail"))]
        others = arms[0] + arms[1] if index == 0 else arms[2 - index]
        faces = _faces(others + own + things, inside, camera, resolution)
        shadow = _shadows(arms[0] + arms[1] + things, stop - start, camera, _shadow_size(resolution))
        pictures[name] = _paint(camera, faces, shadow, episode.grain[window, index], episode.style, resolution)
    return pictures


def _shadow_size(resolution: tuple[int, int]) -> tuple[int, int]:
    return resolution[0] // 2, resolution[1] // 2


def _paint(
    camera: Camera,
    faces: _Faces,
    shadow: tuple[np.ndarray, np.ndarray],
    grain: np.ndarray,
    style: int,
    resolution: tuple[int, int],
) -> np.ndarray:
    height, width = resolution
    noise, lens = _grain(height, width), _lens(height, width, 0.93 + 0.07 * (style % 5) / 4)
    still = len(camera.at) == 1
    backdrop = _table_view(camera, 0, resolution, filtered=True) if still else None
    out = np.empty((len(grain), height, width, 3), dtype=np.uint8)
    for k in range(len(grain)):
        ground = backdrop.copy() if backdrop is not None else _table_view(camera, k, resolution, filtered=False)
        _lay_shadow(ground, shadow[0][k], shadow[1][k])
        canvas = ground.resize((width * _OVERSAMPLE, height * _OVERSAMPLE), Image.Resampling.NEAREST)
        fill = ImageDraw.Draw(canvas).polygon
        seen = np.flatnonzero(faces.visible[k])
        seen = seen[np.argsort(-faces.distance[k, seen], kind="stable")]
        for corners, ink in zip(faces.corners[k, seen].tolist(), faces.ink[k, seen].tolist(), strict=True):
            fill(corners, ink)
        picture = (np.asarray(canvas.reduce(_OVERSAMPLE)) * lens >> 8).view(np.int16)
        y, x = grain[k]
        picture += noise[y : y + height, x : x + width]
        np.clip(picture, 0, 255, out=picture)
        out[k] = picture
    return out


def _lay_shadow(ground: Image.Image, corners: np.ndarray, counts: np.ndarray) -> None:
    width, height = ground.size
    mask = Image.new("L", (width // 2, height // 2))
    fill = ImageDraw.Draw(mask).polygon
    for face in corners[counts].tolist():
        fill(face, _SHADOW_STRENGTH)
    mask = mask.filter(ImageFilter.BoxBlur(max(1.0, width / 160)))
    box = mask.getbbox()
    if box is None:
        return
    left, top, right, bottom = (2 * edge for edge in box)
    ground.paste(
        (14, 12, 16),
        (left, top, right, bottom),
        mask.crop(box).resize((right - left, bottom - top), Image.Resampling.BILINEAR),
    )
