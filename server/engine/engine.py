"""The engine: one torch thread that writes many answers at once, asyncio on the other side.

Prompts need no network. Where it runs on a card they are made beside the thread, in asyncio's
workers; on a CPU in the thread itself, between two steps: two threads of a process that both
compute with OpenMP wait for each other's cores, and each is slower than one alone.

What it does not know: HTTP, JSON, audio files. Each question is a generator (`answer_question`)
that runs until it needs a next token; then it yields NeedsToken and waits, while the thread makes
one decode step for all rows that wait. So questions join and leave between any two steps, and what
belongs to one question lives in its own generator and nowhere else. Before each pass of its own,
over a chunk of its prompt or of an answer whose words are weighed, it yields NeedsTurn: between two
steps are passes over a chunk's tokens together, so that no answer waits longer for its next token.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
import traceback
from collections import deque
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing
from dataclasses import dataclass

import torch

from server.engine import torch_errors
from server.engine.answering import answer_question, prepare_prompt
from server.engine.events import (
    AnswerEvent,
    Event,
    Finished,
    NeedsToken,
    NeedsTurn,
    Piece,
    Started,
)
from server.engine.mailbox import Mailbox
from server.engine.messages import Answer, Question, with_queue_time
from server.engine.runtime import Runtime
from server.engine.spare_cores import SpareCores
from server.errors import EngineStopped, QueueFull, QueueTimeout, RequestTimeout
from steering.silence import make_ahead

log = logging.getLogger("allears")

TORCH_THREAD = "torch"  # the thread's name
_LONGEST_GUESS_SECONDS = 60
_NEVER_SECONDS = 1e7  # asyncio knows no infinite ones
_FIRST_TURN = NeedsTurn(0)  # of a new question, which only says what its first pass takes


@dataclass(slots=True, eq=False)
class Job:
    """A question in the engine. Its fields are the torch thread's, but for `cancelled`."""

    question: Question
    wants_text: bool  # whether anybody reads the text as it comes
    mailbox: Mailbox  # read by the request
    steps: Generator[Event, None, None] | None = None  # once its prompt is prepared
    turn: NeedsTurn = _FIRST_TURN  # that it waits for, or had last
    cancelled: bool = False  # set by the event loop: nobody waits for the answer any more


class Engine:
    """Answers questions, as many at a time as there are slots, in one thread."""

    def __init__(
        self,
        runtime: Runtime,
        *,
        queue_limit_requests: int,
        queue_timeout_seconds: float,
        request_timeout_seconds: float = math.inf,
    ) -> None:
        self.runtime = runtime
        self.queue_limit_requests = queue_limit_requests
        self.queue_timeout_seconds = queue_timeout_seconds
        self.request_timeout_seconds = request_timeout_seconds
        self.waiting = 0  # questions in the queue
        self.fault: BaseException | None = None  # what ended the torch thread, if nobody closed it
        self._recent_seconds: deque[float] = deque(maxlen=32)  # that the last answers took
        self._prepare_in_workers = runtime.model.device.type != "cpu"
        self._most_threads = torch.get_num_threads()  # of arithmetic
        self._spare_cores = SpareCores()
        self._unprepared: deque[Job] = deque()  # without a prompt
        self._ready: deque[Job] = deque()  # with a prompt, without a slot
        self._running: list[Job] = []
        self._turns: deque[Job] = deque()  # running, each with a pass of its own to make
        self._admitted_last = False  # whether the last turn was that of a new question
        self._wake_up = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name=TORCH_THREAD, daemon=True)
        self._thread.start()

    # ---- the event loop's side ----------------------------------------------------------------

    async def run(
        self, question: Question, *, pieces: bool = True
    ) -> AsyncGenerator[AnswerEvent, None]:
        """Started, Pieces of the answer's text unless nobody wants them, then Finished.

        Raises QueueFull at once, RequestError before it waits for a row, QueueTimeout after the
        longest wait, RequestTimeout after the longest answer, and what `answer_question` raises.
        Closing the iterator frees the row before its next token.
        """
        self.check_room()
        asked = time.perf_counter()
        self.waiting += 1
        job = Job(question, pieces, Mailbox())
        limit_seconds = min(self.request_timeout_seconds, _NEVER_SECONDS)
        timer = asyncio.get_running_loop().call_later(limit_seconds, self._time_out, job)
        try:
            try:
                if self._prepare_in_workers:
                    job.steps = await asyncio.to_thread(self._steps, question)
                self._enqueue(job)
                await self._wait_in_queue(job)
            finally:
                self.waiting -= 1
            waited = time.perf_counter() - asked
            while (event := await job.mailbox.next_event()) is not None:
                match event:
                    case Finished(answer):
                        self._recent_seconds.append(time.perf_counter() - asked - waited)
                        yield Finished(with_queue_time(answer, waited))
                    case Started() | Piece():
                        yield event
        finally:
            timer.cancel()
            job.cancelled = True

    async def answer(self, question: Question) -> Answer:
        """The whole Answer; raises what `run` raises."""
        async with aclosing(self.run(question, pieces=False)) as events:
            async for event in events:
                match event:
                    case Finished(answer):
                        return answer
        raise AssertionError("a question ended without its Answer")

    def check_room(self) -> None:
        """Raise QueueFull, with a guess at when one leaves, if no more questions may wait."""
        if self.waiting < self.queue_limit_requests:
            return
        recent = sum(self._recent_seconds) / max(len(self._recent_seconds), 1)
        guess = math.ceil(recent * self.waiting / self.runtime.slots.rows)
        raise QueueFull(
            f"{self.waiting} requests wait already, as many as this server lets wait",
            min(max(guess, 1), _LONGEST_GUESS_SECONDS),
        )

    def stop(self) -> None:
        """Let the torch thread end after its step; jobs that are left end with EngineStopped."""
        with self._wake_up:
            self._closing = True
            self._wake_up.notify()

    def join(self) -> None:
        """Wait for the torch thread to end, for whatever reason it does."""
        self._thread.join()

    def close(self) -> None:
        """Stop the torch thread and wait for its end."""
        self.stop()
        self.join()

    @property
    def running(self) -> int:
        """Number of questions that are being answered."""
        return len(self._running)

    @property
    def alive(self) -> bool:
        """Whether the torch thread runs."""
        return self._thread.is_alive() and self.fault is None

    @property
    def dead(self) -> bool:
        """Whether the torch thread ended though nobody stopped it."""
        return self.fault is not None or not (self._thread.is_alive() or self._closing)

    async def _wait_in_queue(self, job: Job) -> None:
        try:
            async with asyncio.timeout(self.queue_timeout_seconds):
                await job.mailbox.wait_in_queue()
        except TimeoutError:
            raise QueueTimeout(
                f"the request waited {self.queue_timeout_seconds:g} s for its turn"
            ) from None

    def _time_out(self, job: Job) -> None:
        took = f"the answer took over {self.request_timeout_seconds:g} s, the most allowed"
        job.mailbox.end(RequestTimeout(f"{took}; ask for fewer tokens, or again later", 5))
        job.cancelled = True  # last: it frees the row, and only the mailbox's first end counts

    def _enqueue(self, job: Job) -> None:
        with self._wake_up:
            if self._closing or not self.alive:
                raise EngineStopped("the server is shutting down", 5)
            (self._ready if job.steps else self._unprepared).append(job)
            self._wake_up.notify()

    def _steps(self, question: Question) -> Generator[Event, None, None]:
        """Prepare a question's prompt; raises what `prepare_prompt` raises."""
        return answer_question(self.runtime, question, prepare_prompt(self.runtime, question))

    # ---- the torch thread's side ----------------------------------------------------------------

    def _work(self) -> None:
        """The engine loop: 1. turns, of a chunk's tokens together while rows wait, 2. one decode
        step.

        A waiting prompt is prepared before each turn. With nothing to do it makes a silence that
        the next question may need, if one is wanted, or sleeps in 1.
        """
        try:
            while not self._closing:
                self._take_turns()  # 1
                if self._in_step():
                    self._step()  # 2
                elif self.runtime.silence_cache.ahead and not (
                    self._ready or self._unprepared or self._turns
                ):
                    self._make_ahead()
        except BaseException as error:  # whatever it is: nobody runs torch any more
            self.fault = error
            log.critical("the thread that runs the model has ended", exc_info=error)
        finally:
            self._end_all()

    def _give_way(self) -> None:
        """Compute with no more threads than other processes leave cores for."""
        if self._prepare_in_workers or self._most_threads == 1:
            return
        threads = min(self._most_threads, self._spare_cores.count())
        if threads != torch.get_num_threads():
            log.debug(
                "%d of %d threads: other processes need the cores", threads, self._most_threads
            )
            torch.set_num_threads(threads)

    def _end_all(self) -> None:
        """End what is left when the thread ends: no job waits for ever."""
        with self._wake_up:  # from now on none is enqueued
            self._closing = True
            left = [*self._running, *self._ready, *self._unprepared]
            self._ready.clear()
            self._unprepared.clear()
        for job in left:
            self._end(job, EngineStopped("the engine has stopped", 5))

    def _drop_cancelled(self) -> None:
        for job in [job for job in self._running if job.cancelled]:
            self._end(job, None)

    def _prepare_next(self) -> None:
        """Prepare the prompt of the next job, or refuse it."""
        if not self._unprepared:
            return
        job = self._unprepared[0]  # until its prompt is made: no job is lost if the thread dies
        refused: Exception | None = None
        try:
            job.steps = None if job.cancelled else self._steps(job.question)
        except Exception as error:
            self._make_room_after(error)
            refused = error
        with self._wake_up:
            self._unprepared.popleft()
            if job.steps is not None:
                self._ready.append(job)
        if refused is not None:
            self._end(job, refused)

    def _take_turns(self) -> None:
        """Let jobs make their passes, one after the other, until a row has waited for a chunk."""
        tokens = 0
        while not self._closing:
            self._give_way()
            self._drop_cancelled()
            self._prepare_next()
            job = self._next_turn()
            if job is None:
                return
            full = tokens and tokens + job.turn.tokens > self.runtime.chunk_tokens
            if full and any(other is not job for other in self._in_step()):
                self._turns.appendleft(job)
                self._admitted_last = True  # its turn comes next
                return
            tokens += job.turn.tokens
            self._run_to_next_token(job)
            if self._turns and self._turns[-1] is job and not job.turn.lets_pass:
                self._turns.rotate()  # what it holds is freed before another holds as much

    def _next_turn(self) -> Job | None:
        """The job whose turn it is: one amid its passes, else a ready one for which a slot is free
        and one that let it pass, by turns. Waits while there is nothing to do.
        """
        with self._wake_up:
            while True:
                for jobs in (self._ready, self._unprepared):
                    if any(job.cancelled for job in jobs):  # wherever in the queue, clips and all
                        left = [job for job in jobs if not job.cancelled]
                        jobs.clear()
                        jobs.extend(left)
                if self._closing:
                    return None
                amid = bool(self._turns) and not self._turns[0].turn.lets_pass
                others_turn = bool(self._turns) and (amid or self._admitted_last)
                if self._ready and self._free_rows and not others_turn:
                    self._admitted_last = True
                    return self._admit(self._ready.popleft())
                if self._turns:
                    self._admitted_last = False
                    return self._turns.popleft()
                if self._running or self._unprepared or self.runtime.silence_cache.ahead:
                    return None
                self._wake_up.wait()

    @property
    def _free_rows(self) -> int:
        return self.runtime.slots.rows - len(self._running)

    def _admit(self, job: Job) -> Job:
        self._running.append(job)
        job.mailbox.leave_queue()
        return job

    def _make_ahead(self) -> None:
        """Make one silence; without room for it none is, until another is wanted."""
        try:
            make_ahead(self.runtime.model, self.runtime.silence_cache)
        except Exception as error:
            self._make_room_after(error)
            log.warning("a silence could not be made ahead: %s", error)

    def _step(self) -> None:
        """One decode step for all rows; then each job runs to where it needs the next."""
        try:
            self.runtime.slots.step()
        except Exception as error:
            self._make_room_after(error)
            for job in self._in_step():
                self._end(job, error)
            return
        for job in self._in_step():
            self._end(job, None) if job.cancelled else self._run_to_next_token(job)

    def _in_step(self) -> list[Job]:
        """The jobs that wait for a token."""
        return [job for job in self._running if job not in self._turns]

    def _run_to_next_token(self, job: Job) -> None:
        """Run a job until it needs its row's next token, or a turn, or ends."""
        assert job.steps is not None
        try:
            for event in job.steps:
                match event:
                    case NeedsToken():
                        return
                    case NeedsTurn():
                        job.turn = event
                        self._turns.append(job)
                        return
                    case Piece() if not job.wants_text:
                        pass
                    case Started() | Piece() | Finished():
                        job.mailbox.put(event)
        except Exception as error:
            self._make_room_after(error)
            self._end(job, error)
        else:
            self._end(job, None)

    def _end(self, job: Job, error: BaseException | None) -> None:
        """Close a job, which frees its slot, and end its mailbox."""
        for jobs in (self._running, self._turns):
            if job in jobs:
                jobs.remove(job)
        try:
            if job.steps is not None:
                job.steps.close()
        except Exception as fault:  # our bug; the other jobs go on
            error = error or fault
        job.mailbox.end(error)

    def _make_room_after(self, error: Exception) -> None:
        """Free the caches if memory ran out; raise the error again if the device is lost."""
        if torch_errors.is_lost_device(error):
            raise error  # ends the thread: nothing that runs on the device can be answered
        if torch_errors.is_out_of_memory(error):
            traceback.clear_frames(error.__traceback__)  # they hold what had been allocated so far
            self.runtime.make_room()
            log.warning("out of memory: what was kept of silence is freed")
