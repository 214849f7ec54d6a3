"""The examples run as they stand there, in small."""

import os
import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_a_stopped_fsdp_training_with_a_fused_loss_and_dro_weights_ends_as_if_it_never_stopped():
    ran = subprocess.run(
        [sys.executable, str(EXAMPLES / "fsdp_fused_dro.py"), "--steps", "6"],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert ran.returncode == 0, ran.stderr
    losses = {
        (name, int(step)): float(loss)
        for name, step, loss in re.findall(r"^(.+): step (\d+), robust loss (\S+)$", ran.stdout, flags=re.MULTILINE)
    }
    assert losses["resumed", 5] == losses["uninterrupted", 5] == losses["one process", 5] < losses["uninterrupted", 0]
    assert ("resumed", 3) in losses
    assert ("resumed", 0) not in losses
    assert "checkpoint: .safetensors\n" in ran.stdout
    assert "bit for bit: True" in ran.stdout
    apart = re.search(r"largest difference of a parameter: (\S+)", ran.stdout)
    assert apart is not None
    assert float(apart[1]) < 1e-9


def test_weights_on_the_worst_group_lift_the_worst_digit():
    ran = subprocess.run(
        [sys.executable, str(EXAMPLES / "worst_group.py"), "--repeats", "3", "--steps", "300"],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert ran.returncode == 0, ran.stderr
    worst = dict(re.findall(r"^(\S+) +worst digit (\S+),", ran.stdout, flags=re.MULTILINE))
    assert float(worst["GroupDRO"]) > float(worst["cross-entropy"])
