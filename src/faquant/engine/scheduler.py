"""The scheduler: chooses the tokens of each step.

Requests are served in the order of their arrival. Every decoding sequence gets one token. The rest of the step's budget
goes to prompts: an older prompt leaves the younger ones what they need, but keeps at least half. What remains goes to
draft tokens. If the pages run out, the youngest sequence is preempted: its pages are freed, and it computes them again
later.
"""

from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .page_pool import PagePool
from .request import Request

MAX_PREFILLS = 4
"""Prompts that are read at the same time, so that a short prompt does not wait until a long one is finished."""
MAX_CANDIDATES = 16
"""Waiting sequences that one step considers, not counting those that wait for the pages of another prompt."""


@dataclass(frozen=True)
class Work:
    """The tokens of one sequence in a step: its next `count` tokens, followed by the draft tokens.

    decodes: whether these are all its tokens, so that their logits determine the next token.
    """

    request: Request
    count: int
    decodes: bool
    draft: Sequence[int] = ()


class Scheduler:
    """The waiting sequences, the running sequences, and their pages.

    Args:
        propose: returns up to the given number of draft tokens for a sequence.
        copy_page: copies the contents of a page into another.
    """

    def __init__(
        self,
        pool: PagePool,
        page_size: int,
        max_running: int,
        max_tokens: int,
        reuse_pages: bool = True,
        propose: Callable[[Request, int], Sequence[int]] = lambda request, count: (),
        copy_page: Callable[[int, int], None] = lambda source, target: None,
    ) -> None:
        self.pool = pool
        self.waiting: list[Request] = []  # both lists in the order of arrival
        self.running: list[Request] = []
        self.preemptions = 0
        self._page_size = page_size
        self._max_running = max_running
        self._max_tokens = max_tokens
        self._reuse_pages = reuse_pages
        self._propose = propose
        self._copy_page = copy_page

    def add(self, request: Request) -> None:
        """Queue a new request. Raises: ValueError: the pool is too small for this request alone."""
        if self._pages_of(request.prompt_length + request.params.max_tokens) > self.pool.num_pages:
            raise ValueError("The request may need more pages than the pool has.")
        insort(self.waiting, request, key=_number)

    def remove(self, request: Request) -> None:
        """Remove a finished or aborted request and free its pages."""
        if request in self.running:
            self.running.remove(request)
            self.pool.free(request.release())
        else:
            self.waiting.remove(request)

    def requeue(self, request: Request) -> None:
        """Let a running request wait again, without its pages."""
        self.running.remove(request)
        self.pool.free(request.release())
        insort(self.waiting, request, key=_number)

    def schedule(self) -> list[Work]:
        """Choose the next step's work and allocate its pages; an empty list only if no request is left."""
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
            draft = self._draft(request, budget)
            budget -= len(draft)
            work.append(Work(request, 1, True, draft))
        return work + prompts

    def computed(self, work: Work, accepted: int = 0) -> None:
        """Record that a step has computed the work's tokens, of which `accepted` were draft tokens."""
        request = work.request
        request.computed += work.count + accepted
        if self._reuse_pages:
            digests = request.digests(self._page_size, request.computed // self._page_size)
            for page in range(request.known_pages, len(digests)):
                self.pool.remember(request.pages[page], digests[page])
            request.known_pages = len(digests)

    def _grow(self, request: Request) -> bool:
        """Allocate a page for the sequence's next token if needed; False if the sequence itself was preempted."""
        while len(request.pages) < self._pages_of(request.computed + 1):
            if self.pool.available:
                request.pages += self.pool.take(1)
            else:
                youngest = self.running[-1]
                self.requeue(youngest)
                self.preemptions += 1
                if youngest is request:
                    return False
        return True

    def _draft(self, request: Request, budget: int) -> Sequence[int]:
        """Draft tokens that fit into the sequence's own pages, so that no other sequence is preempted for them."""
        space = len(request.pages) * self._page_size - request.computed - 1
        count = min(budget, space, request.remaining_tokens - 1)
        return self._propose(request, count) if count > 0 else ()

    def _admit(self, prefills: list[Request], budget: int) -> None:
        """Start waiting sequences while there are tokens and pages for them, and add them to `prefills`."""
        if not self.waiting or budget <= 0 or len(self.running) == self._max_running:
            return
        candidates, upcoming = 0, {digest for request in prefills for digest in self._upcoming_digests(request)}
        for request in list(self.waiting):
            if request.awaited in upcoming:  # a running prompt will compute this page, so waiting saves the work
                continue
            enough = len(prefills) >= MAX_PREFILLS and sum(some.pending for some in prefills) >= budget
            if enough or len(self.running) == self._max_running or candidates == MAX_CANDIDATES:
                return
            candidates += 1
            digests = self._known_digests(request)
            pages = self.pool.find(digests)
            known = len(pages)
            partial = self._partial_digest(request, known)
            missing = [digest for digest in (*digests[known:], partial) if digest is not None]
            if missing and missing[0] in upcoming:
                request.awaited = next(digest for digest in reversed(missing) if digest in upcoming)
                self.pool.free(pages)
                continue
            needed = self._pages_of(len(request.ids)) - known
            # One spare page for each running sequence, so that the new one is not preempted immediately.
            if needed + len(self.running) > self.pool.available:
                self.pool.free(pages)
                return
            source = None if partial is None else self._find_partial_page(request, known, partial)
            computed = known * self._page_size if source is None else request.prompt_length - 1
            request.hold(pages + self.pool.take(needed), known, computed)
            self.waiting.remove(request)
            insort(self.running, request, key=_number)
            insort(prefills, request, key=_number)
            upcoming.update(self._upcoming_digests(request))
            if source is not None:
                self._copy_page(source, request.pages[known])

    def _may_reuse(self, request: Request) -> bool:
        return self._reuse_pages and not request.must_compute_all

    def _known_digests(self, request: Request) -> list[bytes]:
        """Digests of the pages it may reuse. The last token always runs, because its logits are needed."""
        if not self._may_reuse(request):
            return []
        return request.digests(self._page_size, (len(request.ids) - 1) // self._page_size)

    def _partial_digest(self, request: Request, known: int) -> bytes | None:
        """The digest of the prompt's last, partly filled page, if it follows the `known` pages directly."""
        is_next = self._may_reuse(request) and known == (request.prompt_length - 1) // self._page_size
        return request.prompt_digest(self._page_size) if is_next else None

    def _find_partial_page(self, request: Request, known: int, partial: bytes) -> int | None:
        """A running sequence's page that contains the end of the same prompt, except for its last token."""
        for some in self.running:
            if some.computed >= request.prompt_length - 1 and some.prompt_digest(self._page_size) == partial:
                return some.pages[known]
        return None

    def _upcoming_digests(self, request: Request) -> list[bytes]:
        """Digests of the pages that a running prompt will fill."""
        upcoming = self._known_digests(request)[request.computed // self._page_size :]
        partial = request.prompt_digest(self._page_size) if self._reuse_pages else None
        return upcoming if partial is None or request.computed >= request.prompt_length - 1 else [*upcoming, partial]

    def _pages_of(self, tokens: int) -> int:
        return -(-tokens // self._page_size)

    def check_integrity(self) -> None:
        """Raises: RuntimeError: the state is inconsistent."""
        self.pool.check_integrity(request.pages for request in self.running)
        for queue in (self.waiting, self.running):
            numbers = [request.number for request in queue]
            if numbers != sorted(set(numbers)):
                raise RuntimeError(f"Requests are not in the order of their arrival: {numbers[:16]}.")
        if len(self.running) > self._max_running:
            raise RuntimeError(f"{len(self.running)} sequences are running; at most {self._max_running} may.")
        for request in self.waiting:
            if request.pages or request.computed or request.finish_reason:
                raise RuntimeError(f"The waiting request {request.number} holds pages or has finished.")
        for request in self.running:
            if request.finish_reason or request.pending < 1:
                raise RuntimeError(f"The running request {request.number} has no tokens to compute.")
            pages = request.pages
            if len(pages) < self._pages_of(request.computed) or len(set(pages)) < len(pages):
                raise RuntimeError(f"Request {request.number} has {request.computed} tokens in pages {pages[:8]}.")


def _shares(prefills: Sequence[Request], budget: int) -> list[Work]:
    """Divide the step's remaining budget among the prompts, oldest first."""
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
