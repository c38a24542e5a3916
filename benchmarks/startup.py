"""Seconds from starting `vision-service serve` to 200 from /health/ready, with all models in place.

python benchmarks/startup.py [--rounds 5]
"""

import argparse
import statistics
import time

from servers import running_server


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    seconds = []
    for _ in range(arguments.rounds + 1):
        start = time.perf_counter()
        with running_server():
            seconds.append(time.perf_counter() - start)
    counted = seconds[1:]  # the first start may still build models and fill the disk's cache
    print(f"ready after {statistics.median(counted):.2f} s, median of {len(counted)} ({min(counted):.2f} to {max(counted):.2f})")


if __name__ == "__main__":
    main()
