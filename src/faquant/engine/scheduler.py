"""Which tokens of which sequences go through the model in the next step.

Who came first is served first. Sequences that have read their prompt get one token each; what is left of the step's
tokens goes to prompts, the oldest of which leaves younger ones what they need, but never more than half; and what they
leave, to guesses. Where the pages run out, the youngest sequence gives back its own and later computes them again.
"""

from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .page_pool import PagePool
from .request import Request

MAX_PREFILLS = 4
"""Prompts that are read at the same time, so that a short one does not wait for all of a long one."""
MAX_LOOKS = 16
"""Waiting sequences that one step looks at, those left out that wait for what others read."""


@dataclass(frozen=True)
class Work:
    """`count` next tokens of a sequence; `decodes` if they are its last, so that the next one follows, and tokens that
    are guessed to."""

    request: Request
    count: int
    decodes: bool
    guessed: Sequence[int] = ()


class Scheduler:
    """Sequences that wait, sequences that run, and the pages that they hold.

    `guess` gives up to so many tokens that may follow a sequence. `copy_page` copies what one page holds into another.
    """

    def __init__(
        self,
        pool: PagePool,
        page_size: int,
        max_running: int,
        max_tokens: int,
        reuse_pages: bool = True,
        guess: Callable[[Request, int], Sequence[int]] = lambda request, count: (),
        copy_page: Callable[[int, int], None] = lambda source, target: None,
    ) -> None:
        self.pool = pool
        self.waiting: list[Request] = []  # both by age, the oldest first
        self.running: list[Request] = []
        self.preemptions = 0
        self._page_size = page_size
        self._max_running = max_running
        self._max_tokens = max_tokens
        self._reuse_pages = reuse_pages
        self._guess = guess
        self._copy_page = copy_page

    def add(self, request: Request) -> None:
        """Let a new request wait for its turn. Raises: ValueError: the pool is too small for it alone."""
        if self._pages_of(request.prompt_length + request.params.max_tokens) > self.pool.num_pages:
            raise ValueError("The pool has fewer pages than the request may need.")
        insort(self.waiting, request, key=_number)

    def remove(self, request: Request) -> None:
        """A request has ended, or nobody wants its answer any more."""
        if request in self.running:
            self.running.remove(request)
            self.pool.give_back(request.release())
        else:
            self.waiting.remove(request)

    def schedule(self) -> list[Work]:
        """The next step's work, with pages for all of it; empty only if there are no requests."""
        before = self.preemptions
        decoding = [request for request in self.running if request.pending == 1]
        prefills = [request for request in self.running if request.pending > 1]
        budget = self._max_tokens - len(decoding)
        decoding = [request for request in decoding if request.pages and self._grow(request)]
        prefills = [request for request in prefills if request.pages]
        if self.preemptions == before:
            self._admit(prefills, budget)
        prompts = _shares(prefills, budget)
        budget -= sum(item.count for item in prompts)
        work = []
        for request in decoding:
            guessed = self._guesses(request, budget)
            budget -= len(guessed)
            work.append(Work(request, 1, True, guessed))
        return work + prompts

    def computed(self, work: Work, accepted: int = 0) -> None:
        """A step has put the work's tokens, and so many of the guessed ones, into the pages."""
        request = work.request
        request.computed += work.count + accepted
        if self._reuse_pages:
            digests = request.digests(self._page_size, request.computed // self._page_size)
            for page in range(request.known_pages, len(digests)):
                self.pool.remember(request.pages[page], digests[page])
            request.known_pages = len(digests)

    def _grow(self, request: Request) -> bool:
        """Give a running sequence room for one more token; False if that took its own pages."""
        while len(request.pages) < self._pages_of(request.computed + 1):
            if self.pool.available:
                request.pages += self.pool.take(1)
            else:
                youngest = self.running.pop()
                self.pool.give_back(youngest.release())
                insort(self.waiting, youngest, key=_number)
                self.preemptions += 1
                if youngest is request:
                    return False
        return True

    def _guesses(self, request: Request, budget: int) -> Sequence[int]:
        """For them no other sequence loses its pages."""
        room = len(request.pages) * self._page_size - request.computed - 1
        count = min(budget, room, request.room - 1)
        return self._guess(request, count) if count > 0 else ()

    def _admit(self, prefills: list[Request], budget: int) -> None:
        """Let waiting sequences run while there are tokens and pages for them; they join `prefills`."""
        if not self.waiting or budget <= 0 or len(self.running) == self._max_running:
            return
        looks, coming = 0, {digest for request in prefills for digest in self._coming(request)}
        for request in list(self.waiting):
            if request.awaited in coming:  # waiting a little saves all of it
                continue
            enough = len(prefills) >= MAX_PREFILLS and sum(some.pending for some in prefills) >= budget
            if enough or len(self.running) == self._max_running or looks == MAX_LOOKS:
                return
            looks += 1
            digests = self._known_digests(request)
            pages = self.pool.find(digests)
            known = len(pages)
            begun = self._begun_page(request, known)
            missing = [digest for digest in (*digests[known:], begun) if digest is not None]
            if missing and missing[0] in coming:
                request.awaited = next(digest for digest in reversed(missing) if digest in coming)
                self.pool.give_back(pages)
                continue
            needed = self._pages_of(len(request.ids)) - known
            # A page more for each that runs: who is let in should not be put out again at once.
            if needed + len(self.running) > self.pool.available:
                self.pool.give_back(pages)
                return
            source = None if begun is None else self._who_has(request, known, begun)
            computed = known * self._page_size if source is None else request.prompt_length - 1
            request.hold(pages + self.pool.take(needed), known, computed)
            self.waiting.remove(request)
            insort(self.running, request, key=_number)
            insort(prefills, request, key=_number)
            coming.update(self._coming(request))
            if source is not None:
                self._copy_page(source, request.pages[known])

    def _known_digests(self, request: Request) -> list[bytes]:
        """Of the pages that it may find; its last token always runs, because its logits are wanted."""
        return request.digests(self._page_size, (len(request.ids) - 1) // self._page_size) if self._reuse_pages else []

    def _begun_page(self, request: Request, known: int) -> bytes | None:
        """The digest of the page that its prompt does not fill, where that comes behind these `known` pages."""
        is_next = self._reuse_pages and known == (request.prompt_length - 1) // self._page_size
        return request.prompt_digest(self._page_size) if is_next else None

    def _who_has(self, request: Request, known: int, begun: bytes) -> int | None:
        """The page, of a sequence that runs, with all of the same prompt but its last token."""
        for some in self.running:
            if some.computed >= request.prompt_length - 1 and some.prompt_digest(self._page_size) == begun:
                return some.pages[known]
        return None

    def _coming(self, request: Request) -> list[bytes]:
        """What a running prompt is going to put into pages."""
        coming = self._known_digests(request)[request.computed // self._page_size :]
        begun = request.prompt_digest(self._page_size) if self._reuse_pages else None
        return coming if begun is None or request.computed >= request.prompt_length - 1 else [*coming, begun]

    def _pages_of(self, tokens: int) -> int:
        return -(-tokens // self._page_size)

    def check_integrity(self) -> None:
        """Raises: RuntimeError: the state contradicts itself."""
        self.pool.check_integrity(request.pages for request in self.running)
        for queue in (self.waiting, self.running):
            numbers = [request.number for request in queue]
            if numbers != sorted(set(numbers)):
                raise RuntimeError(f"Requests are not in order of their arrival: {numbers[:16]}.")
        if len(self.running) > self._max_running:
            raise RuntimeError(f"{len(self.running)} sequences run, and only {self._max_running} may.")
        for request in self.waiting:
            if request.pages or request.computed or request.finish_reason:
                raise RuntimeError(f"Request {request.number} waits and holds pages, or has ended.")
        for request in self.running:
            if request.finish_reason or request.pending < 1:
                raise RuntimeError(f"Request {request.number} runs, and there is nothing to do for it.")
            pages = request.pages
            if len(pages) < self._pages_of(request.computed) or len(set(pages)) < len(pages):
                raise RuntimeError(f"Request {request.number} has {request.computed} tokens in pages {pages[:8]}.")


def _shares(prefills: Sequence[Request], budget: int) -> list[Work]:
    """How the prompts, the oldest first, share the tokens that a step has left."""
    younger = sum(request.pending for request in prefills)
    work = []
    for request in prefills:
        younger -= request.pending
        count = min(request.pending, max(-(-budget // 2), budget - younger))
        if count > 0:
            work.append(Work(request, count, count == request.pending))
        budget -= count
    return work


def _number(request: Request) -> int:
    return request.number
