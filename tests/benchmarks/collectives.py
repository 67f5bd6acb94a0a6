"""What a compiled program communicates, read off its text."""

import re
from collections import Counter
from math import prod

OPERATIONS = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute|collective-broadcast"
CALL = re.compile(rf"= (\(.*?\)|\S+) ({OPERATIONS})(?:-start)?\(")
SHAPE = re.compile(r"[a-z]+(\d+)\[([\d,]*)\]")


def collectives(compiled) -> Counter:
    """Bytes of the results of each kind of collective operation, one execution of each counted."""
    volume = Counter()
    for results, operation in CALL.findall(compiled.as_text()):
        for bits, sides in SHAPE.findall(results):
            volume[operation] += int(bits) // 8 * prod(int(side) for side in sides.split(",") if side)
    return volume
