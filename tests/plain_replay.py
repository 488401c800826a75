"""A cache of one size under any policy, written from the definitions in dictionaries and lists."""

from itertools import combinations

NEVER = 10**18


def requests(trace, prompts):
    """(sequence, step, layer, experts with their weights) of every request, in order."""
    found = []
    for s in range(trace.num_sequences):
        length, prompt = int(trace.lengths[s]), prompts[s]
        blocks = [list(range(prompt))] if prompt else []
        blocks += [[t] for t in range(prompt, length)]
        for step, tokens in enumerate(blocks):
            for layer in range(trace.num_layers):
                weights = {}
                for t in tokens:
                    for k in range(trace.top_k):
                        e = int(trace.experts[s, t, layer, k])
                        if e >= 0:
                            weight = 0.0 if trace.weights is None else trace.weights[s, t, layer, k]
                            weights[(layer, e)] = weights.get((layer, e), 0.0) + float(weight)
                found.append((s, step, layer, weights))
    return found


def most_used(fit, layers, room, sizes):
    """Experts used most in a trace, as many as there is room for; on a tie the lower id."""
    counts = {(j, e): 0 for j in layers for e in range(fit.num_experts)}
    for row in fit.experts:
        for token in row:
            for j in layers:
                for e in token[j]:
                    if e >= 0:
                        counts[(j, int(e))] += 1
    held = []
    for x in sorted(counts, key=lambda x: (-counts[x], x)):
        if sizes[x[0]] <= room:
            held.append(x)
            room -= sizes[x[0]]
    return held


class Cache:
    """One cache; `run` returns for each request which of its experts hit."""

    def __init__(self, policy, capacity, sizes, contract, pinned=(), **options):
        self.policy, self.capacity, self.sizes = policy, capacity, sizes
        self.contract, self.pinned, self.options = contract, list(pinned), options
        self.random = options.get("seed", 0)
        self.ranked_as = contract  # what Belady counts in: requests ("engine") or uses ("paper")

    def start(self):
        self.resident = []  # in no order that means anything but to "random"
        self.queue = []  # oldest first, for SIEVE
        self.visited, self.hand = {}, None
        self.uses = {}  # expert: [(number of the use, step, weight)], since the start
        self.loaded = {}  # expert: number of the use that loaded it
        for x in self.pinned:
            self.load(x, -1)

    def load(self, x, now):
        self.resident.append(x)
        self.queue.append(x)
        self.visited[x] = False
        self.loaded[x] = now

    def drop(self, x):
        last = self.resident.pop()
        if last != x:
            self.resident[self.resident.index(x)] = last
        if self.hand == x:
            after = self.queue.index(x) + 1
            self.hand = self.queue[after] if after < len(self.queue) else None
        self.queue.remove(x)

    def used(self):
        return sum(self.sizes[x[0]] for x in self.resident)

    def key(self, x, now, step):
        """What is evicted first has the lowest."""
        uses = self.uses.get(x, [])
        last = uses[-1][0] if uses else -1
        if self.policy == "fifo":
            first = self.loaded[x]
        elif self.policy == "lfu":
            first = len(uses)
        elif self.policy == "lfu_cached":
            first = sum(use[0] >= self.loaded[x] for use in uses)
        elif self.policy in ("lfu_decay", "score") and not uses:
            first = 0.0  # loaded ahead of need, and never needed so far
        elif self.policy == "lfu_decay":
            first = 0.0
            decay = 0.5 ** (1 / self.options["half_life"])
            for number, (_, at, _) in enumerate(uses):
                first = first * decay ** (at - uses[number - 1][1] if number else at) + 1.0
            first *= decay ** (step - uses[-1][1])
        elif self.policy == "score":
            alpha, first = self.options["alpha"], 0.0
            for number, (_, at, weight) in enumerate(uses):
                passed = at - uses[number - 1][1] if number else at
                first = first * (1 - alpha) ** passed + alpha * weight
            first *= (1 - alpha) ** (step - uses[-1][1])
        elif self.policy == "lfru":
            first = len(uses) / (now - last + 1)
        elif self.policy == "belady":
            first = -self.next_use(x, now)
        else:
            first = 0
        return first, last

    def victim(self, protected, now, step):
        free = [x for x in self.resident if x not in protected and x not in self.pinned]
        if not free:
            return None
        if self.policy == "random":
            self.random = (self.random * 1103515245 + 12345) % 2**31
            return free[(self.random >> 8) % len(free)]
        if self.policy == "sieve":
            at = self.queue.index(self.hand) if self.hand is not None else 0
            while True:
                x = self.queue[at]
                if x in free and not self.visited[x]:
                    self.hand = x
                    return x
                if x in free:
                    self.visited[x] = False
                at = (at + 1) % len(self.queue)
        return min(free, key=lambda x: self.key(x, now, step))

    def make_room(self, needed, protected, now, step):
        while self.used() + needed > self.capacity:
            x = self.victim(protected, now, step)
            if x is None:
                return
            self.drop(x)

    def next_use(self, x, now):
        """The request ("engine") or use ("paper") after the one that runs, that needs x next."""
        last = self.uses[x][-1][0]
        for number, r in self.places.get(x, []):
            if number > last:
                return r if self.ranked_as == "engine" else number
        return NEVER

    def prefetch(self, predicted, now, step):
        """Load what is predicted and not there; what is predicted is not evicted for it."""
        protected, loaded = {x for x in predicted if x in self.resident}, []
        for x in predicted:
            if x not in self.resident:
                self.make_room(self.sizes[x[0]], protected, now, step)
                if self.used() + self.sizes[x[0]] <= self.capacity:
                    self.load(x, now)
                    protected.add(x)
                    loaded.append(x)
        return loaded

    def run(self, requests, carry_over=False, predicted=None):
        """Requests as in `requests`; of one cache, those of its layers."""
        answers, now, clock = [], 0, 0
        self.prefetched, self.wasted = 0, 0
        for r, (sequence, step, _, weights) in enumerate(requests):
            new = r == 0 or requests[r - 1][0] != sequence
            if r == 0 or (new and not carry_over):
                self.start()
                self.places, number = {}, now
                for later, request in enumerate(requests[r:], r):
                    if request[0] != sequence and not carry_over:
                        break
                    for x in request[3]:
                        self.places.setdefault(x, []).append((number, later))
                        number += 1
            clock += new or requests[r - 1][1] != step
            experts = list(weights)
            if predicted is not None:
                loaded = self.prefetch(predicted[r], now, clock)
                self.prefetched += len(loaded)
                self.wasted += len(set(loaded) - set(experts))
            hit = {x: x in self.resident for x in experts}
            if self.contract == "paper" and self.policy != "static":
                empty = self.capacity - len(self.resident)
                for x in [x for x in experts if not hit[x] and x not in self.uses][: max(empty, 0)]:
                    hit[x] = True
            answers.append([hit[x] for x in experts])
            if self.policy == "static":
                now += len(experts)
                continue
            if self.contract == "engine":
                missing = sum(self.sizes[x[0]] for x in experts if x not in self.resident)
                self.make_room(missing, set(experts), now, clock)
            for x in experts:
                if x in self.resident:
                    self.visited[x] = True
                else:
                    if self.contract == "paper":
                        self.make_room(self.sizes[x[0]], {x}, now, clock)
                    self.load(x, now)
                self.uses.setdefault(x, []).append((now, clock, weights[x]))
                now += 1
            while self.used() > self.capacity:
                x = self.victim(set(), now, clock)
                if x is None:
                    break
                self.drop(x)
        return answers


def predicted_by_previous(requests, num_layers):
    """What the same layer needed in the step before, for every request of all layers."""
    found = []
    for r, (sequence, *_) in enumerate(requests):
        before = requests[r - num_layers] if r >= num_layers else (None, None, None, {})
        found.append(list(before[3]) if before[0] == sequence else [])
    return found


def predicted_by_next_layer(requests, fit, count):
    """The `count` experts that follow those of the layer before most, in the trace `fit`."""
    follows = {}
    for s in range(fit.num_sequences):
        for t in range(int(fit.lengths[s])):
            for j in range(1, fit.num_layers):
                for e in fit.experts[s, t, j - 1].tolist():
                    for f in fit.experts[s, t, j].tolist():
                        if e >= 0 and f >= 0:
                            after = follows.setdefault((j - 1, e), {})
                            after[f] = after.get(f, 0) + 1
    found = []
    for r, (_, _, layer, _) in enumerate(requests):
        score = {}
        for x in requests[r - 1][3] if layer else ():
            after = follows.get(x, {})
            for f, n in after.items():
                score[f] = score.get(f, 0.0) + n / sum(after.values())
        ranked = sorted(score, key=lambda f: (-score[f], f))
        found.append([(layer, f) for f in ranked[:count]])
    return found


def fewest_misses(requests, capacity):
    """Fewest loads that any cache of equal slots can do, by trying everything (tiny cases)."""
    return least(requests, capacity, "loads", {x: 1 for request in requests for x in request})


def least(requests, capacity, goal, sizes, worth=None):
    """Least loads, bytes or waiting requests of any cache, by trying everything (tiny cases)."""
    best = {frozenset(): 0}  # what the cache holds after a request: what it took until then
    for request in requests:
        needed = frozenset(request)
        after = {}
        for held, cost in best.items():
            missing = needed - held
            cost += {
                "loads": len(missing),
                "bytes": sum((worth or sizes)[x] for x in missing),
                "waits": bool(missing),
            }[goal]
            # Others go first; a request larger than the cache keeps some of its own.
            fits = sum(sizes[x] for x in needed) <= capacity
            fixed, others = (needed, held - needed) if fits else (frozenset(), needed)
            for count in range(len(others) + 1):
                for kept in combinations(sorted(others), count):
                    content = fixed | frozenset(kept)
                    if sum(sizes[x] for x in content) <= capacity:
                        after[content] = min(after.get(content, cost), cost)
        best = after
    return min(best.values())


def joined_steps(trace, prompts, batches, draft):
    """(batch, step): {layer: experts in order of first use}, and how many tokens share the step.

    `batches` lists the sequences of each batch.
    """
    experts, tokens = {}, {}
    for b, members in enumerate(batches):
        for s in members:
            for t in range(int(trace.lengths[s])):
                after = (t - prompts[s]) // draft + (1 if prompts[s] else 0)
                step = 0 if t < prompts[s] else after
                tokens[b, step] = tokens.get((b, step), 0) + 1
                for layer in range(trace.num_layers):
                    there = experts.setdefault((b, step, layer), {})
                    for k in range(trace.top_k):
                        e = int(trace.experts[s, t, layer, k])
                        if e >= 0:
                            weight = 0.0 if trace.weights is None else trace.weights[s, t, layer, k]
                            there[e] = there.get(e, 0.0) + float(weight)
    return experts, tokens
