"""Who does the groups makes no difference: serial, processes, processes that are killed, another grouping."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from toys import jobs
from toys.jobs import RUN, delivered, digest

from ppl_align.cli import main
from ppl_align.jobs.executors.process import Processes
from ppl_align.jobs.plan import Asked, make_plan
from ppl_align.jobs.work import Order

TWO = ("--executor", "process", "--workers", "2")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return jobs.set_up(tmp_path, monkeypatch)


def test_processes_write_the_same_bytes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*RUN, "--out", "whole"]) == 0
    capsys.readouterr()
    assert main([*RUN, "--out", "out", *TWO, "--json"]) == 0
    assert capsys.readouterr().out.startswith("{"), "what a model prints is no result"
    assert digest(here / "out") == digest(here / "whole")


@pytest.mark.parametrize("executor", [(), TWO])
def test_what_a_reward_warns_of_is_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], executor: tuple[str, ...]
) -> None:
    says = '    import logging\n\n    logging.getLogger("ppl_align").warning("mind the gap")\n    broken ='
    warns = jobs.MODEL.replace("    broken =", says)
    assert warns != jobs.MODEL
    (here / "asked.py").write_text(warns)
    assert main([*RUN, "--out", "out", *executor]) == 0
    assert [line for line in capsys.readouterr().err.splitlines() if "gap" in line] == ["warning: mind the gap"]


@pytest.mark.parametrize("tokens", [1, 10**9])
def test_another_grouping_draws_the_same(here: Path, tokens: int) -> None:
    assert main([*RUN, "--out", "whole"]) == 0
    run = [str(tokens) if argument == "1600" else argument for argument in RUN]
    assert main([*run, "--out", "out"]) == 0
    assert delivered(here / "out").equals(delivered(here / "whole"))


def orders(here: Path, count: int) -> tuple[Order, list[tuple[int, list[tuple[int, dict[str, object]]]]]]:
    plan = make_plan(Asked("asked.py", data=here / "data.jsonl"), ("sure.py",))
    assert plan.rows is not None
    assert plan.header is not None
    works = [(number, [(number, plan.rows.rows[number])]) for number in range(count)]
    return Order(plan.asked, ("sure.py",), plan.header, keep="none"), works


def test_a_worker_that_is_killed_costs_nothing(here: Path) -> None:
    order, works = orders(here, 6)
    alone = {group: result.rows[0].lines for group, result in Processes(order, 1).run(works, lambda *_: None)}
    executor = Processes(order, 2)
    killed: list[int] = []

    def kill() -> None:
        """A worker that is at work, once there is one."""
        while not killed:
            time.sleep(0.02)
            for process in list((pools[-1]._processes or {}).values()) if pools else ():
                if (here / "asked.log").stat().st_size > before:
                    os.kill(process.pid, signal.SIGKILL)
                    killed.append(process.pid)
                    break

    pools = []
    plain = executor._pool
    executor._pool = lambda workers: pools.append(plain(workers)) or pools[-1]  # type: ignore[method-assign, func-returns-value]
    before = (here / "asked.log").stat().st_size
    thread = threading.Thread(target=kill)
    thread.start()
    found = {group: result.rows[0].lines for group, result in executor.run(works, lambda *_: None)}
    thread.join()
    assert killed
    assert found == alone


def test_workers_end_with_whoever_started_them(here: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", "from ppl_align.cli import main; import sys; main(sys.argv[1:])"]
    slow = jobs.MODEL.replace("    broken =", "    import time\n\n    time.sleep(0.5)\n    broken =")
    (here / "asked.py").write_text(slow)
    job = subprocess.Popen([*command, *RUN, "--out", "out", *TWO], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    wait_for(lambda: (here / "asked.log").exists())
    children = _children(job.pid)
    assert len(children) >= 2
    job.kill()
    job.wait()
    wait_for(lambda: not any(_alive(child) for child in children))


def wait_for(what: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_rows_that_kill_every_worker_fail_and_no_others(here: Path) -> None:
    (here / "asked.py").write_text(
        jobs.MODEL.replace(
            "    broken =", "    if digit[0] == 1:\n        import os\n        os._exit(9)\n    broken ="
        )
    )
    order, works = orders(here, 3)
    found = {group: result.rows[0] for group, result in Processes(order, 2).run(works, lambda *_: None)}
    assert [found[group].error is None for group in range(3)] == [True, False, True]
    assert "row 1: 3 processes died of it" in str(found[1].error)
    assert found[1].again
