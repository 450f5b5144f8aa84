"""Whatever happens to whom and when: each request has one answer, ends once, and leaves nothing behind."""

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from inferencesched.director import Decision, Waiting
from inferencesched.flowcontrol import Capacity, PriorityBand, QueueBudget
from inferencesched.lifecycle import RetryPolicy
from inferencesched.observability.events import Ended, Received, Refused
from inferencesched.request import Usage
from inferencesched.routing.objectives import InferenceObjective, ModelTable
from tests.director_parts import Counting, Log, chat, director, fleet, queue, rng

OBJECTIVES = ("", "urgent", "batch")


class DirectorMachine(RuleBasedStateMachine):
    """Drives a director call by call, and keeps its own list of who is where."""

    @initialize(room=st.integers(0, 3), ttl=st.sampled_from([0.0, 3.0]), limited=st.booleans(), most=st.integers(1, 3))
    def begin(self, room, ttl, limited, most):
        self.pool = fleet("a", "b", "c")
        self.meter = Counting(6 if limited else None)
        self.log = Log()
        self.gate_room = room
        self.director = director(
            self.pool,
            controller=queue(
                room,
                budget=QueueBudget(ttl=ttl),
                capacity=Capacity(requests=most + 2),
                default=PriorityBand(0, capacity=Capacity(requests=most)),
                displace="any",
                inflight_ttl=20.0,
            ),
            meters=(self.meter,),
            sink=self.log,
            retry=RetryPolicy(attempts=2),
            models=ModelTable(
                objectives=(InferenceObjective("urgent", priority=10), InferenceObjective("batch", priority=-1))
            ),
        )
        self.rng = rng()
        self.now = 0.0
        self.asked = 0
        self.waiting = {}
        self.lives = {}
        self.answers = {}

    def answered(self, decision):
        assert isinstance(decision, Decision)
        assert decision.request_id not in self.answers, "a second answer"
        self.answers[decision.request_id] = decision
        self.waiting.pop(decision.request_id, None)
        if decision.forwarded:
            self.lives[decision.request_id] = decision.life
        else:
            assert decision.life is None
            assert decision.status >= 400

    def stepped(self):
        for decision in self.director.step(self.now, self.rng):
            assert decision.request_id in self.waiting, "an answer to nobody"
            self.answered(decision)

    @rule(objective=st.sampled_from(OBJECTIVES), good=st.booleans() | st.just(True), size=st.integers(1, 200))
    def arrives(self, objective, good, size):
        headers = {"x-llm-d-inference-objective": objective, "x-llm-d-inference-fairness-id": f"f{size % 3}"}
        body = chat("x" * size) if good else chat("x" * size)[:-2]
        self.asked += 1
        answer = self.director.decide(body, headers, now=self.now, rng=self.rng)
        if isinstance(answer, Waiting):
            self.waiting[answer.request_id] = answer
        else:
            self.answered(answer)
        self.stepped()

    @rule(seconds=st.sampled_from([0.0, 0.1, 1.0, 4.0]))
    def time_passes(self, seconds):
        self.now += seconds
        at = self.director.next_wakeup(self.now)
        assert at is None or at >= self.now
        self.stepped()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def client_goes_while_it_waits(self, data):
        waiting = self.waiting[data.draw(st.sampled_from(sorted(self.waiting)))]
        decision = self.director.cancel(waiting.ticket, self.now)
        assert decision is not None
        self.answered(decision)
        assert self.director.cancel(waiting.ticket, self.now) is None

    def some_life(self, data):
        return self.lives[data.draw(st.sampled_from(sorted(self.lives)))]

    @precondition(lambda self: self.lives)
    @rule(data=st.data(), count=st.integers(0, 3))
    def tokens_come(self, data, count):
        self.some_life(data).tokens(count, now=self.now)

    @precondition(lambda self: self.lives)
    @rule(data=st.data(), how=st.sampled_from(["complete", "cancel", "fail", "block", "revoked"]), known=st.booleans())
    def it_ends(self, data, how, known):
        life = self.some_life(data)
        usage = Usage(10, 3, 4) if known and how != "revoked" else None
        was_open = life.open
        ended = getattr(life, how)(now=self.now) if how == "revoked" else getattr(life, how)(usage, now=self.now)
        assert ended == was_open
        assert not life.complete(now=self.now)
        self.stepped()

    @precondition(lambda self: any(life.open for life in self.lives.values()))
    @rule(data=st.data())
    def its_server_fails(self, data):
        life = self.lives[data.draw(st.sampled_from(sorted(k for k, v in self.lives.items() if v.open)))]
        tried, sent = life.tried, life.first_byte_at is not None
        decision = self.director.retry(life, "connect", now=self.now, rng=self.rng)
        if decision.forwarded:
            assert not sent, "retried after the first byte"
            assert decision.endpoint not in tried
            assert decision.life is life
            assert life.open
        else:
            assert not life.open
        self.stepped()

    @precondition(lambda self: len(self.pool) > 1)
    @rule(data=st.data())
    def a_server_leaves(self, data):
        self.pool.leave(data.draw(st.sampled_from(self.pool.names)))
        self.director.observe("llama", self.now)
        self.stepped()

    @precondition(lambda self: len(self.pool) < 3)
    @rule(name=st.sampled_from("abc"))
    def a_server_joins(self, name):
        if name not in self.pool.names:
            self.pool.join(name)
            self.director.observe("llama", self.now)
            self.stepped()

    @invariant()
    def everybody_is_somewhere(self):
        self.director.check()
        still = {name for name, life in self.lives.items() if life.open}
        assert self.director.waiting == len(self.waiting)
        assert len(self.director) == len(self.waiting) + len(still)
        assert self.asked == len(self.answers) + len(self.waiting)
        assert len(self.meter.open) == len(self.waiting) + len(still)
        booked = sum(1 for name in still if self.lives[name].reservation.settlement is None)
        assert self.pool.ledger().inflight_requests == booked
        received = {event.request_id for event in self.log.of(Received)}
        ended = [event.request_id for event in (*self.log.of(Ended), *self.log.of(Refused))]
        assert len(ended) == len(set(ended)), "an end told twice"
        assert received - set(ended) == set(self.waiting) | still

    def teardown(self):
        if not hasattr(self, "director"):
            return
        for life in list(self.lives.values()):
            life.cancel(now=self.now)
        for decision in self.director.shutdown(self.now):
            self.answered(decision)
        self.stepped()
        assert not self.waiting
        for life in self.lives.values():
            life.cancel(now=self.now)
        assert len(self.director) == 0
        assert not self.meter.open
        ledger = self.pool.ledger()
        assert (ledger.inflight_requests, ledger.inflight_tokens) == (0, 0)
        controller = self.director.pools["llama"].controller
        assert sum(band.requests + band.inflight for band in controller.bands) == 0
        self.everybody_is_somewhere()


TestDirector = pytest.mark.slow(DirectorMachine.TestCase)
TestDirector.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
