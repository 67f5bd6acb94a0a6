"""Claims on processes that meet before they start: all of them are told who is missing, or what differs."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from lowdim_jax._command import BAD_INPUT
from lowdim_jax.distributed import command
from lowdim_jax.distributed.rendezvous import Missing, meet, parse
from lowdim_jax.distributed.shards import even_bounds, synthesize, write_shards

CARD = {"rank": 2, "data": "00ff"}


def address():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return f"localhost:{probe.getsockname()[1]}"


def outcomes(cards, *, timeout=5.0, processes=None, ids=None):
    """What every process is told: None to go, or an exception."""
    where = address()

    def one(process, card):
        try:
            return meet(where, process, processes or len(cards), card, timeout)
        except (ValueError, Missing) as error:
            return error

    with ThreadPoolExecutor() as pool:
        return list(pool.map(one, ids or range(len(cards)), cards))


def test_processes_of_one_mind_go():
    assert outcomes([CARD] * 3) == [None] * 3


def test_what_differs_is_named_to_all():
    told = outcomes([CARD, CARD | {"rank": 3}])
    assert all(str(error).startswith("processes 0 and 1 differ in rank: 2 and 3") for error in told)
    told = outcomes([CARD, CARD | {"data": "0100"}])
    assert all("differ in data: '00ff' and '0100'" in str(error) for error in told)


def test_two_of_one_number_are_told():
    told = outcomes([CARD] * 3, ids=[0, 1, 1])
    assert {str(error) for error in told if error} >= {"two processes have come with process-id=1"}


def test_who_does_not_come_is_named_in_time():
    begin = time.monotonic()
    told = outcomes([CARD, CARD], processes=4, timeout=0.5)
    assert [str(error) for error in told] == ["processes 2, 3 have not come within 0.5 seconds"] * 2
    alone = outcomes([CARD], processes=2, ids=[1], timeout=0.5)
    assert "process 0 has not come to localhost:" in str(alone[0])
    assert time.monotonic() - begin < 5


def test_a_stranger_at_the_door_is_let_go():
    where = address()
    with ThreadPoolExecutor() as pool:
        zero = pool.submit(meet, where, 0, 2, CARD, 10.0)
        while True:
            try:
                with socket.create_connection(parse(where)) as stranger:
                    stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
                break
            except OSError:
                time.sleep(0.01)
        pool.submit(meet, where, 1, 2, CARD, 10.0).result()
        zero.result()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    bounds = even_bounds(20, 2)
    parts = synthesize((20, 10), bounds, rank=2, observations=100)
    return write_shards(tmp_path_factory.mktemp("data"), parts, shape=(20, 10), bounds=bounds).folder


def train(data, where, process, *more):
    return command.main(
        ["train", str(data), str(data / "run"), "--rank", "2", "--coordinator", where, "--num-processes", "2",
         "--process-id", str(process), "--timeout", "1", *more]
    )  # fmt: skip


def refused(capsys, code, *words):
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    for word in words:
        assert word in error
    return code


def test_the_command_names_a_port_in_use_and_bad_addresses(data, capsys):
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        code = train(data, f"localhost:{port}", 0)
    assert refused(capsys, code, f"coordinator port {port} cannot", "another program uses it") == 2
    for bad in ("localhost", "localhost:0", "localhost:99999", ":7421", "localhost:http"):
        assert refused(capsys, train(data, bad, 1), "expected HOST:PORT with a port from 1 to 65535") == 2
    assert refused(capsys, train(data, "no.such.invalid:7421", 1), "'no.such.invalid' cannot be found") == 2


def test_the_command_names_a_partner_that_does_not_come(data, capsys):
    begin = time.monotonic()
    assert refused(capsys, train(data, address(), 0), "process 1 has not come within 1 s") == command.LOST
    assert refused(capsys, train(data, address(), 1), "process 0 has not come to loc") == command.LOST
    assert time.monotonic() - begin < 6


def test_processes_of_other_settings_or_data_never_start(data, tmp_path, capsys):
    bounds = even_bounds(20, 2)
    parts = synthesize((20, 10), bounds, rank=2, observations=100, seed=1)
    other = write_shards(tmp_path, parts, shape=(20, 10), bounds=bounds).folder
    for folder, more, words in (
        (data, ["--learning-rate", "0.1"], "differ in learning_rate: None and 0.1"),
        (other, [], "differ in data: "),
    ):
        where = address()
        with ThreadPoolExecutor() as pool:
            zero, one = pool.submit(train, data, where, 0), pool.submit(train, folder, where, 1, *more)
            assert zero.result() == one.result() == BAD_INPUT
        assert capsys.readouterr().err.count(words) == 2
