"""The motion of the demo scene: one arm puts the lighter in the cup while the other watches the cup.

Lengths are metres, angles radians. The table is the plane z = 0; x points right, y away from the viewer, z up.
"""

from dataclasses import dataclass

import numpy as np

FPS = 30
TASK = "put the lighter in the cup"
JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")
JOINT_NAMES = tuple(f"{side}_{joint}" for side in ("left", "right") for joint in JOINTS)

# Two arms that face each other, as on an ALOHA table; the sizes are near those of a ViperX 300 (Trossen's drawings).
ARM_BASE = ((-0.50, 0.0, 0.0), (0.50, 0.0, 0.0))
ARM_YAW = (0.0, np.pi)
SHOULDER_HEIGHT = 0.13
UPPER_ARM = FOREARM = 0.31
HAND = 0.17  # wrist to fingertips

CUP_HEIGHT = 0.09
LIGHTER_LENGTH = 0.08
_LIGHTER_HALF_HEIGHT = 0.008
_GRAVITY = 9.81

# Fraction of an episode that each segment of the active arm's path takes, before jitter.
_SEGMENTS = (0.04, 0.17, 0.12, 0.09, 0.10, 0.18, 0.08, 0.07, 0.15)
_CLOSED_AFTER = 4  # the number of segments after which the fingers hold the lighter
_OPENED_AFTER = 8


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One demonstration, before it is drawn. ``n`` is the number of frames."""

    index: int
    state: np.ndarray  # float32[n, 14], what the encoders report: where the joints are, with sensor noise
    action: np.ndarray  # float32[n, 14], the target that the leader arms ask for next
    joints: np.ndarray  # float64[n, 14], where the joints really are: this is what the pictures show
    lighter: np.ndarray  # float64[n, 3], its centre
    lighter_frame: np.ndarray  # float64[n, 3, 3], columns: along, across, up
    cup: np.ndarray  # float64[3], the centre of its foot
    cup_turn: float  # where the handle points
    style: int  # picks colours and light
    grain: np.ndarray  # int64[n, 3, 2], for each frame and camera, where its sensor noise is cut from


def axis_rotation(axis: int, angle: np.ndarray) -> np.ndarray:
    """Rotation matrices about a coordinate axis: ``angle[...] -> [..., 3, 3]``."""
    angle = np.asarray(angle, dtype=np.float64)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.zeros((*angle.shape, 3, 3))
    matrix[..., axis, axis] = 1.0
    matrix[..., i, i] = matrix[..., j, j] = np.cos(angle)
    matrix[..., j, i] = np.sin(angle)
    matrix[..., i, j] = -np.sin(angle)
    return matrix


def arm_frames(arm: int, joints: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Forward kinematics.

    Args:
        arm: 0 for left, 1 for right.
        joints: ``[n, 7]`` angles in the order of JOINTS; the gripper is not used.

    Returns:
        For each link (base, upper, fore, hand, tip), its origin ``[n, 3]`` and orientation ``[n, 3, 3]``; the link lies
        along the first column.
    """
    waist, shoulder, elbow, roll, wrist, rotate = joints[:, :6].T
    base = np.broadcast_to(np.array(ARM_BASE[arm]), (len(joints), 3))
    turned = axis_rotation(2, waist + ARM_YAW[arm])
    upper = turned @ axis_rotation(1, shoulder)
    fore = upper @ axis_rotation(1, elbow) @ axis_rotation(0, roll)
    hand = fore @ axis_rotation(1, wrist) @ axis_rotation(0, rotate)
    shoulder_at = base + np.array([0.0, 0.0, SHOULDER_HEIGHT])
    elbow_at = shoulder_at + upper[..., 0] * UPPER_ARM
    wrist_at = elbow_at + fore[..., 0] * FOREARM
    tip_at = wrist_at + hand[..., 0] * HAND
    return {
        "base": (base, turned),
        "upper": (shoulder_at, upper),
        "fore": (elbow_at, fore),
        "hand": (wrist_at, hand),
        "tip": (tip_at, hand),
    }


def reach(arm: int, tip: np.ndarray, pitch: float, rotate: float = 0.0, gripper: float = 1.0) -> np.ndarray:
    """Inverse kinematics, elbow up and forearm unrolled.

    Args:
        arm: 0 for left, 1 for right.
        tip: ``[3]``, where the fingertips are to be. Beyond reach, the arm stretches towards it.
        pitch: how far the hand looks below the horizon.
        rotate: turn of the hand about its own axis.
        gripper: opening, 0 closed to 1 open.

    Returns:
        ``[7]`` joint positions.
    """
    offset = np.asarray(tip, dtype=np.float64) - ARM_BASE[arm]
    out = np.hypot(offset[0], offset[1]) - HAND * np.cos(pitch)
    up = offset[2] + HAND * np.sin(pitch) - SHOULDER_HEIGHT
    bend = np.arccos(np.clip(np.hypot(out, up) / (2 * UPPER_ARM), 0.0, 1.0))  # both links are equally long
    direction = np.arctan2(up, out)
    waist = (np.arctan2(offset[1], offset[0]) - ARM_YAW[arm] + np.pi) % (2 * np.pi) - np.pi
    return np.array([waist, -(direction + bend), 2 * bend, 0.0, pitch + direction - bend, rotate, gripper])


def minimum_jerk(fraction: np.ndarray) -> np.ndarray:
    """The smoothest way from 0 to 1 at rest on both ends (Flash and Hogan, 1985)."""
    u = np.clip(fraction, 0.0, 1.0)
    return u**3 * (10.0 + u * (6.0 * u - 15.0))


def _along(knots: np.ndarray, times: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Joint positions ``[len(at), 7]`` on a path that rests at every knot."""
    segment = np.clip(np.searchsorted(times, at, side="right") - 1, 0, len(times) - 2)
    done = minimum_jerk((at - times[segment]) / (times[segment + 1] - times[segment]))
    return knots[segment] + done[:, None] * (knots[segment + 1] - knots[segment])


def _sway(rng: np.random.Generator, at: np.ndarray, size: float) -> np.ndarray:
    """A slow wander ``[len(at), 7]``: nobody holds a leader arm perfectly still."""
    hertz = rng.uniform(0.15, 0.6, (3, 1, 7))
    phase = rng.uniform(0, 2 * np.pi, (3, 1, 7))
    return size * np.sin(2 * np.pi * hertz * at[None, :, None] + phase).mean(axis=0)


def plan_episode(index: int, frames: int, seed: int = 0) -> Episode:
    """Everything about one demonstration except its pictures.

    Args:
        index: Which episode; each has its own positions, colours, timing and active arm.
        frames: Its length; the motion is stretched to it.
        seed: The dataset's seed.
    """
    rng = np.random.default_rng((seed, index))
    active = index % 2 if seed % 2 else 1 - index % 2
    side = 1.0 if active else -1.0
    lighter = np.array([side * rng.uniform(0.07, 0.20), rng.uniform(-0.13, 0.10), _LIGHTER_HALF_HEIGHT])
    cup = np.array([-side * rng.uniform(0.02, 0.10), rng.uniform(-0.08, 0.08), 0.0])
    turn = rng.uniform(-0.45, 0.45)

    heading = np.arctan2(*(lighter - ARM_BASE[active])[1::-1])
    lighter_yaw = heading - turn
    up = np.array([0.0, 0.0, 1.0])
    over, rim = lighter + 0.11 * up, cup + (CUP_HEIGHT + LIGHTER_LENGTH / 2) * up
    home = np.array([side * rng.uniform(0.22, 0.26), rng.uniform(-0.16, -0.10), rng.uniform(0.15, 0.19)])
    away = home + rng.uniform(-0.03, 0.03, 3)
    steep, slanted = rng.uniform(1.25, 1.40), rng.uniform(0.55, 0.70)
    knots = np.array(
        [
            reach(active, home, 1.05, 0.0, 0.75),
            reach(active, home, 1.05, 0.0, 0.75),
            reach(active, over, steep, turn, 0.95),
            reach(active, lighter, steep, turn, 0.95),
            reach(active, lighter, steep, turn, 0.18),
            reach(active, over, steep, turn, 0.18),
            reach(active, rim + 0.07 * up, slanted, 0.0, 0.18),
            reach(active, rim + 0.015 * up, slanted, 0.0, 0.18),
            reach(active, rim + 0.015 * up, slanted, 0.0, 0.90),
            reach(active, away, 1.0, 0.0, 0.70),
        ]
    )
    shares = np.array(_SEGMENTS) * rng.uniform(0.9, 1.1, len(_SEGMENTS))
    times = np.concatenate([[0.0], np.cumsum(shares / shares.sum())])

    # The other arm waits beside the cup, where its wrist camera sees it.
    beside = cup + np.array([-side * rng.uniform(0.12, 0.15), rng.uniform(-0.03, 0.03), rng.uniform(0.09, 0.12)])
    waiting = reach(1 - active, beside, rng.uniform(0.80, 0.95), 0.0, rng.uniform(0.4, 0.7))

    # One step more than there are frames, because the action of the last frame is a target too.
    step = np.arange(frames + 1)
    targets = np.empty((frames + 1, 2, 7))
    targets[:, active] = _along(knots, times, step / frames) + _sway(rng, step / FPS, 0.006)
    targets[:, 1 - active] = waiting + _sway(rng, step / FPS, 0.045)
    targets[..., 6] = np.clip(targets[..., 6], 0.0, 1.0)
    wanted = targets.reshape(frames + 1, 14)

    # A position-controlled joint trails its target: each frame covers most of what is left.
    joints = wanted[:-1].copy()
    for k in range(1, frames):
        joints[k] = joints[k - 1] + 0.65 * (wanted[k] - joints[k - 1])
    state = joints + rng.normal(0.0, 0.0015, joints.shape)
    state[:, 6::7] = np.clip(state[:, 6::7], 0.0, 1.0)

    held_from, held_until = (int(np.ceil(times[k] * frames)) for k in (_CLOSED_AFTER, _OPENED_AFTER))
    held_until -= max(1, round(0.5 * shares[_OPENED_AFTER - 1] * frames))
    hand = arm_frames(active, joints[:, 7 * active : 7 * active + 7])["tip"]
    path, frame = _carry(lighter, axis_rotation(2, np.array(lighter_yaw)), hand, held_from, held_until, cup, rng)
    return Episode(
        index=index,
        state=state.astype(np.float32),
        action=wanted[1:].astype(np.float32),
        joints=joints,
        lighter=path,
        lighter_frame=frame,
        cup=cup,
        cup_turn=-np.pi / 2 + side * rng.uniform(0.2, 0.9),
        style=int(rng.integers(1 << 16)),
        grain=rng.integers(0, 64, (frames, 3, 2)),
    )


def _carry(
    lighter: np.ndarray,
    lying: np.ndarray,
    hand: tuple[np.ndarray, np.ndarray],
    held_from: int,
    held_until: int,
    cup: np.ndarray,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Centre ``[n, 3]`` and orientation ``[n, 3, 3]`` of the lighter: it lies, is held, falls into the cup."""
    tip, turned = hand
    frames = len(tip)
    centre = np.broadcast_to(lighter, (frames, 3)).copy()
    frame = np.broadcast_to(lying, (frames, 3, 3)).copy()
    if held_from >= frames:
        return centre, frame
    grasp = turned[held_from].T @ (lighter - tip[held_from])
    relative = turned[held_from].T @ lying
    centre[held_from:] = tip[held_from:] + turned[held_from:] @ grasp
    frame[held_from:] = turned[held_from:] @ relative
    if held_until >= frames:
        return centre, frame

    lean = rng.uniform(0, 2 * np.pi)
    along = np.array([0.32 * np.cos(lean), 0.32 * np.sin(lean), 0.95])
    along *= np.sign(frame[held_until, 2, 0]) or 1.0
    rest = cup + np.array([0.012 * np.cos(lean), 0.012 * np.sin(lean), 0.052])
    start, began = centre[held_until].copy(), frame[held_until].copy()
    seconds = np.arange(frames - held_until) / FPS
    height = max(start[2] - rest[2], 1e-3)
    fallen = np.minimum(0.5 * _GRAVITY * seconds**2 / height, 1.0)[:, None]
    centre[held_until:] = start + fallen * (rest - start)
    first = began[:, 0] + fallen * (along - began[:, 0])
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    third = np.cross(first, began[:, 1])
    third /= np.linalg.norm(third, axis=1, keepdims=True)
    frame[held_until:] = np.stack([first, np.cross(third, first), third], axis=-1)
    return centre, frame
