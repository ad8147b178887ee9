"""The kernels under the address and the undefined-behaviour sanitizer, on inputs that are drawn anew each time."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from bnrepro.norm import library
from tests.conftest import needs_compiler

SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
CALLS = 1000


@needs_compiler
@pytest.mark.slow
def test_kernels_stay_inside_their_buffers_and_agree_with_naive_loops(tmp_path: Path) -> None:
    compiler = shutil.which("g++") or shutil.which("c++") or ""
    empty = tmp_path / "empty.cpp"
    empty.write_text("int main() {}\n")
    probe = subprocess.run([compiler, *SANITIZERS, "-fopenmp", str(empty), "-o", str(tmp_path / "empty")], check=False)
    if probe.returncode:
        pytest.skip("this compiler has no sanitizers, or no OpenMP")
    source, driver = Path(__file__).with_name("kernels_driver.cpp"), tmp_path / "driver"
    flags = ("-std=c++17", "-O1", "-g", "-march=native", "-fopenmp", *SANITIZERS, "-I", str(library.SOURCE.parent))
    subprocess.run([compiler, *flags, str(source), "-o", str(driver)], check=True)
    seed = int(os.environ.get("BNREPRO_TEST_SEED") or random.randrange(10**9))
    done = subprocess.run([str(driver), str(seed), str(CALLS)], capture_output=True, text=True, timeout=300)
    report = f"BNREPRO_TEST_SEED={seed} draws the same again\n{done.stdout}\n{done.stderr}"
    assert done.returncode == 0, report
    assert f"{CALLS} calls agree" in done.stdout, report
