import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

TARGETS = """
import itertools
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from lossworks.fused import kernels

def types(names, dtype):
    held = {"logits": "*" + dtype, "stride": "i64", "classes": "i32", "target": "*i64"}
    return {name: held.get(name, "constexpr" if name.isupper() else "*fp32") for name in names}

for capability, dtype, extras in itertools.product((80, 90), ("fp32", "bf16"), (False, True)):
    for kernel in (kernels._statistics, kernels._gradient):
        constants = {"HANDICAP": extras, "OFFSET": extras, "SCALE": extras, "TOTAL": extras, "BLOCK": 8192}
        held = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
        source = ASTSource(kernel, types(kernel.arg_names, dtype), held)
        compiled = compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 16})
        assert compiled.asm["cubin"], (capability, dtype, kernel)
print("compiled")
"""
UNASKED = """
import sys, torch, lossworks as lw
hidden, weight = torch.ones(2, 3, requires_grad=True), torch.ones(4, 3)
lw.fused.linear_loss(hidden, weight, torch.zeros(2, dtype=torch.int64), lw.losses.CrossEntropyLoss()).backward()
print("lossworks.fused.kernels" in sys.modules)
"""


def python(*arguments, **environment):
    """What a Python of its own prints, with these environment variables; None unsets one."""
    held = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    held = {name: value for name, value in held.items() if value is not None}
    done = subprocess.run([sys.executable, *arguments], env=held, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_kernels_agree_with_torch_in_the_interpreter():
    cases = str(Path(__file__).with_name("kernel_cases.py"))
    python("-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", cases, TRITON_INTERPRET="1")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Triton's compiler runs on Linux")
def test_kernels_compile_for_gpus_that_are_not_here(tmp_path):
    printed = python("-c", TARGETS, TRITON_INTERPRET=None, TRITON_CACHE_DIR=str(tmp_path), TRITON_DEFAULT_FP_FUSION="1")
    assert "compiled" in printed


def test_kernels_are_not_imported_on_the_cpu():
    assert python("-c", UNASKED, TRITON_INTERPRET=None).strip() == "False"
