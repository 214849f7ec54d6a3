"""What `import lossworks` adds to `import torch`, and how long the command takes until it says something.

Each number is of a fresh process. In each round the processes take turns: `import torch`, `import torch` and then
`import lossworks`, the whole command `lossworks --help`, and `lossworks show LDRLoss`. `added` is the median over
rounds of the paired differences to `import torch`, in seconds. On a machine that does other work too these waver by
more than the library adds; `inside` is what `import lossworks` takes by the clock of a process that has torch already.

    python bench/import_time.py [--rounds 10] [--json]
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

INSIDE = "import time, torch; t = time.perf_counter(); import lossworks; print(time.perf_counter() - t)"
COMMAND = "import sys; sys.argv[1:] = {}; import lossworks_command; lossworks_command.main()"
WAYS = {
    "import torch": "import torch",
    "import torch, lossworks": "import torch; import lossworks",
    "lossworks --help": COMMAND.format(["--help"]),
    "lossworks show LDRLoss": COMMAND.format(["show", "LDRLoss"]),
}


def spent(code: str) -> float:
    """The seconds of a fresh process that runs this code."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def inside() -> float:
    """The seconds of `import lossworks` in a fresh process that has imported torch."""
    return float(subprocess.run([sys.executable, "-c", INSIDE], check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    for code in WAYS.values():  # warm the files that are read
        spent(code)
    rounds = [{way: spent(code) for way, code in WAYS.items()} for _ in range(arguments.rounds)]
    base = "import torch"
    results = {
        way: {
            "seconds": statistics.median(each[way] for each in rounds),
            "added": statistics.median(each[way] - each[base] for each in rounds),
            "ratio": statistics.median(each[way] / each[base] for each in rounds),
        }
        for way in WAYS
    }
    after_torch = statistics.median(inside() for _ in range(arguments.rounds))
    if arguments.json:
        print(json.dumps(results | {"inside": after_torch}))
        return
    print(f"{'':<26}{'seconds':>9}{'added':>9}{'ratio':>9}")
    for way, row in results.items():
        print(f"{way:<26}{row['seconds']:>9.3f}{row['added']:>9.3f}{row['ratio']:>9.2f}")
    print(f"{'inside':<26}{after_torch:>9.3f}")


if __name__ == "__main__":
    main()
