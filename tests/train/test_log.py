"""The log of a training."""

from pathlib import Path

from vitfold.train.log import Log


def test_a_log_forgets_what_is_done_again(tmp_path: Path) -> None:
    log = Log(tmp_path, 0)
    for step in (5, 10, 15):
        log.step(step, loss=1 / step)
    log.epoch(10, epoch=1, loss=0.5)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 1')
    again = Log(tmp_path, 10)
    assert [event["step"] for event in again.events] == [5, 10, 10]


def test_one_process_of_all_writes_the_log(tmp_path: Path) -> None:
    log = Log(tmp_path, 0, writes=False)
    log.step(1, loss=0.5)
    log.epoch(1, epoch=1, loss=0.5)
    assert [len(log.steps), len(log.epochs)] == [1, 1]
    assert not list(tmp_path.iterdir())
