"""The wheel holds the source, all of it, and nothing else."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("preflight", "checks", "bench")


def test_the_wheel_holds_the_source(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("robot_preflight-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}
        metadata = {name for name in archive.namelist() if ".dist-info/" in name}
    source = {
        str(path.relative_to(ROOT)): path.read_bytes()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert packed == source
    for package in PACKAGES:
        assert f"{package}/py.typed" in packed
    assert any(name.endswith("licenses/LICENSE") for name in metadata)
    assert any(name.endswith("entry_points.txt") for name in metadata)


def test_no_file_names_a_download_address():
    pinned = (ROOT / "constraints.txt").read_text().splitlines()
    assert all("==" in line and "/" not in line and "@" not in line for line in pinned)
