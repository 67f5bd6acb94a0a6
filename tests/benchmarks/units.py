"""Durations and sizes as people say them."""


def duration(seconds: float) -> str:
    """Three digits in the unit that leaves one to three of them before the point: `9.34 µs`, `3.6 s`."""
    for unit, name in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= unit:
            return f"{digits(seconds / unit)} {name}"
    return f"{digits(seconds / 1e-6)} µs"


def digits(number: float) -> str:
    """Three digits, none of them a power of ten: `0.296`, `1,680`."""
    return f"{number:.3g}" if abs(number) < 999.5 else f"{float(f'{number:.3g}'):,.0f}"
