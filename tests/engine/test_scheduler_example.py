"""The example of docs/architecture.md: three requests in a pool of ten pages."""

from faquant.engine.page_pool import PagePool
from faquant.engine.request import Request
from faquant.engine.scheduler import Scheduler
from faquant.sampling.params import SamplingParams
from faquant.sampling.sampler import Sampler
from oracles.tiny_server import tokenizer

State = tuple[dict[str, int], dict[str, int], list[str]]


def request(number: int, length: int) -> Request:
    prompt = [number + at % 50 for at in range(length)]
    params = SamplingParams(max_tokens=600, temperature=0)
    sampler = Sampler(params, prompt, vocab_size=300, end_token_ids=())
    return Request(number, prompt, tokenizer(), sampler, None, b"")  # type: ignore[arg-type]


def test_the_example() -> None:
    scheduler = Scheduler(PagePool(10), 128, 8, 512)
    requests = {"A": request(0, 300), "B": request(1, 600), "C": request(2, 200)}
    names = {some: name for name, some in requests.items()}
    states: dict[int, State] = {}
    for step in range(1, 216):
        if step == 1:
            scheduler.add(requests["A"])
            scheduler.add(requests["B"])
        if step == 2:
            scheduler.add(requests["C"])
        work = scheduler.schedule()
        states[step] = (
            {names[item.request]: item.count for item in work},
            {names[some]: len(some.pages) for some in scheduler.running},
            [names[some] for some in scheduler.waiting],
        )
        for item in work:
            scheduler.computed(item)
            if item.decodes:
                item.request.ids.append(7)
        scheduler.check_integrity()
    assert states[1] == ({"A": 256, "B": 256}, {"A": 3, "B": 5}, [])
    assert states[2] == ({"A": 44, "B": 344}, {"A": 3, "B": 5}, ["C"])
    assert states[3] == ({"A": 1, "B": 1}, {"A": 3, "B": 5}, ["C"])
    assert states[42][1] == {"A": 3, "B": 5}
    assert states[43][1] == {"A": 3, "B": 6}
    assert states[86][1] == {"A": 3, "B": 6}
    assert states[87][1] == {"A": 4, "B": 6}
    assert states[170][2] == ["C"]
    assert states[171] == ({"A": 1}, {"A": 4}, ["B", "C"])
    assert states[215] == ({"A": 1}, {"A": 5}, ["B", "C"])
    assert scheduler.preemptions == 1
