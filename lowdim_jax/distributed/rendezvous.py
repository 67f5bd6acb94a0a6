"""Where processes meet before anything is started: who is missing, or differs, is named to all of them.

Process 0 listens at the coordinator's address; the others send a card, one line of JSON, and get a line back.
JAX's own runtime takes the same address afterwards.
"""

import errno
import json
import socket
import time
from contextlib import ExitStack, suppress
from typing import Any

from lowdim_jax._reading import because, short

LONGEST = 2**16
"""Bytes of a card or an answer."""
PAUSE = 0.1
"""Seconds between attempts to reach process 0, which may be started later."""


class Missing(Exception):
    """Another process has not come, or has gone."""


def meet(address: str, process: int, processes: int, card: dict[str, Any], timeout: float, /) -> None:
    """Return when all processes have come with the same card.

    Raises
    ------
    ValueError
        If the address cannot be used, or two processes differ; to all of them, in the same words.
    Missing
        If one has not come within `timeout` seconds.
    """
    host, port = parse(address)
    (_receive if process == 0 else _report)(host, port, process, processes, card, timeout)


def parse(address: str, /) -> tuple[str, int]:
    """Host and port of `HOST:PORT`; `ValueError` if it is something else."""
    host, _, port = address.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port[:9]) < 2**16:
        raise ValueError(f"coordinator={short(address)}, expected HOST:PORT with a port from 1 to 65535")
    return host.strip("[]"), int(port)


def _receive(host: str, port: int, _: int, processes: int, card: dict, timeout: float) -> None:
    """Process 0: wait for all cards, then tell everybody to go, or why not."""
    deadline = time.monotonic() + timeout
    with ExitStack() as stack:
        door = stack.enter_context(_listen(port))
        came: dict[int, socket.socket] = {}
        wrong = None
        while len(came) < processes - 1 and wrong is None:
            door.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                visitor = stack.enter_context(door.accept()[0])
            except TimeoutError:
                break
            visitor.settimeout(max(min(deadline - time.monotonic(), 5), 0.1))
            told = _line(visitor)
            if not isinstance(told, dict) or type(told.get("process")) is not int:
                continue  # nobody of ours
            other = told["process"]
            wrong = _difference(card, told.get("card"), other) if other not in came else (
                f"two processes have come with process-id={other}"
            )
            came[other] = visitor
        absent = [k for k in range(1, processes) if k not in came]
        if absent and wrong is None:
            answer, failure = {"missing": absent, "seconds": timeout}, _absent(absent, timeout)
        else:
            answer, failure = {"wrong": wrong}, None if wrong is None else ValueError(wrong)
        for visitor in came.values():
            with suppress(OSError):
                visitor.sendall(json.dumps(answer).encode() + b"\n")
        if failure is not None:
            raise failure


def _report(host: str, port: int, process: int, _: int, card: dict, timeout: float) -> None:
    """Every other process: bring the card to process 0, and wait for its answer."""
    deadline = time.monotonic() + timeout
    missing = Missing(f"process 0 has not come to {short(host)[1:-1]}:{port} within {timeout:g} seconds")
    while True:
        try:
            connection = socket.create_connection((host, port), max(deadline - time.monotonic(), 0.001))
            break
        except socket.gaierror as error:
            raise ValueError(f"coordinator host {short(host)} cannot be found: {because(error)}") from error
        except (OSError, UnicodeError) as error:
            if isinstance(error, UnicodeError):
                raise ValueError(f"coordinator host {short(host)} is no name of a host") from error
            if time.monotonic() + PAUSE > deadline:
                raise missing from error
            time.sleep(PAUSE)
    with connection:
        connection.settimeout(timeout + 1)  # process 0, if it was started later, waits for others as long
        with suppress(OSError):
            connection.sendall(json.dumps({"process": process, "card": card}).encode() + b"\n")
        answer = _line(connection)
    if not isinstance(answer, dict):
        raise Missing(f"process 0 has not answered at {short(host)[1:-1]}:{port} within {timeout:g} seconds")
    if "missing" in answer:
        raise _absent(answer["missing"], answer["seconds"])
    if answer.get("wrong"):
        raise ValueError(str(answer["wrong"]))


def _listen(port: int) -> socket.socket:
    """A socket at a port of this machine that nobody else has."""
    try:
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        return socket.create_server(("", port), family=family, dualstack_ipv6=dual)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        why = "another program uses it" if taken else because(error)
        raise ValueError(f"coordinator port {port} cannot be opened on this machine: {why}") from error


def _line(connection: socket.socket) -> Any:
    """What the other side says in one line of JSON; None if it says nothing, or something else."""
    text = b""
    try:
        while not text.endswith(b"\n"):
            part = connection.recv(4096)
            if not part or len(text) > LONGEST:
                return None
            text += part
        return json.loads(text)
    except (OSError, ValueError, RecursionError):
        return None


def _difference(ours: dict, theirs: Any, other: int) -> str | None:
    """How another process's card differs from that of process 0, in a sentence."""
    if not isinstance(theirs, dict):
        return f"process {other} is of another version of this command"
    for name in (*ours, *theirs):
        if ours.get(name) != theirs.get(name):
            return (
                f"processes 0 and {other} differ in {name}: {short(ours.get(name))} and "
                f"{short(theirs.get(name))}; nothing was started"
            )
    return None


def _absent(processes: list[int], seconds: float) -> Missing:
    names = ", ".join(map(str, processes[:10])) + (" …" if len(processes) > 10 else "")
    plural = "process" if len(processes) == 1 else "processes"
    verb = "has" if len(processes) == 1 else "have"
    return Missing(f"{plural} {names} {verb} not come within {seconds:g} seconds")
