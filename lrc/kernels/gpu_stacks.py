"""Programs that replay one sequence on one stack, for caches of every size: see `gpu_caches`.

All have the same first arguments: the trace (`experts`, `lengths`), which sequences to replay, how
many caches each has, the slots of a token that go to one cache, `top_k`, `num_experts`; then what
lies between sequences and tokens of the trace, and how many experts a stack may hold. What follows
is output and scratch, a row a program.
"""

import triton
import triton.language as tl

from lrc.kernels.rules import BELADY, LFU, LOOKAHEAD

_BELADY, _LFU, _LOOKAHEAD = tl.constexpr(BELADY), tl.constexpr(LFU), tl.constexpr(LOOKAHEAD)


@triton.jit
def _least(a, b):
    return tl.minimum(a, b)


@triton.jit
def _place(experts, lengths, sequences, num_caches, slots, sequence_stride):
    """Number of a program, where its first token lies, and how many tokens it replays."""
    job = tl.program_id(0).to(tl.int64)
    sequence = tl.load(sequences + job // num_caches)
    tokens = experts + sequence * sequence_stride + (job % num_caches) * slots
    return job, tokens, tl.load(lengths + sequence).to(tl.int32)


@triton.jit
def _uses(token, slot, slots, top_k, num_experts):
    """Experts that the slots of a token use: which slots do, and the experts' numbers."""
    e = tl.load(token + slot, mask=slot < slots, other=-1).to(tl.int32)
    used = e >= 0
    return used, tl.where(used, slot // top_k * num_experts + e, 0)


@triton.jit
def lru(
    experts,
    lengths,
    sequences,
    num_caches,
    slots,
    top_k,
    num_experts,
    sequence_stride,
    token_stride,
    num_ids,
    new_hits,
    last_tokens,  # by expert; -1 = never used
    stacks,  # experts by last use, the last one at the end
    PLACES: tl.constexpr,
    SLOTS: tl.constexpr,
):
    job, token, length = _place(experts, lengths, sequences, num_caches, slots, sequence_stride)
    new_hits += job * num_ids
    last_tokens += job * num_ids
    stacks += job * num_ids
    one = tl.full([1], 1, new_hits.dtype.element_ty)
    slot_lanes = tl.arange(0, SLOTS)
    place_lanes = tl.arange(0, PLACES)
    height = 0
    for t in range(length):
        seen = height
        for first_slot in range(0, slots, SLOTS):
            used, x = _uses(token, first_slot + slot_lanes, slots, top_k, num_experts)
            is_new = used & (tl.load(last_tokens + x, mask=used, other=0) < 0)
            depth = seen + tl.cumsum(is_new.to(tl.int32), axis=0) - 1
            tl.atomic_add(new_hits + depth, one, is_new, sem="relaxed")
            seen += tl.sum(is_new.to(tl.int32))
            tl.debug_barrier()
            tl.store(last_tokens + x, t, mask=used)
        tl.debug_barrier()
        kept = 0
        for first_place in range(0, height, PLACES):
            place = first_place + place_lanes
            inside = place < height
            x = tl.load(stacks + place, mask=inside, other=0)
            again = inside & (tl.load(last_tokens + x, mask=inside, other=0) == t)
            tl.atomic_add(new_hits + height - 1 - place, one, again, sem="relaxed")
            stays = inside & (again == 0)
            goal = kept + tl.cumsum(stays.to(tl.int32), axis=0) - 1
            tl.debug_barrier()
            tl.store(stacks + goal, x, mask=stays)
            kept += tl.sum(stays.to(tl.int32))
        for first_slot in range(0, slots, SLOTS):
            used, x = _uses(token, first_slot + slot_lanes, slots, top_k, num_experts)
            goal = kept + tl.cumsum(used.to(tl.int32), axis=0) - 1
            tl.store(stacks + goal, x, mask=used)
            kept += tl.sum(used.to(tl.int32))
        height = kept
        token += token_stride
        tl.debug_barrier()


@triton.jit
def static(
    experts,
    lengths,
    sequences,
    num_caches,
    slots,
    top_k,
    num_experts,
    sequence_stride,
    token_stride,
    num_ids,
    ends_at,  # windows and numbers v >= 1 with so many experts used v times or more
    frequencies,  # by expert, in the current window
    at_least,  # experts used v times or more, by v
    m,
    LEVELS: tl.constexpr,
    SLOTS: tl.constexpr,
):
    job, token, length = _place(experts, lengths, sequences, num_caches, slots, sequence_stride)
    ends_at += job * (num_ids + 1)
    frequencies += job * num_ids
    at_least += job * (m + 2)
    slot_lanes = tl.arange(0, SLOTS)
    level_lanes = tl.arange(0, LEVELS)
    one = tl.full([1], 1, ends_at.dtype.element_ty)
    if length >= m:
        for t in range(length):
            for first_slot in range(0, slots, SLOTS):
                used, x = _uses(token, first_slot + slot_lanes, slots, top_k, num_experts)
                frequency = tl.load(frequencies + x, mask=used, other=0) + 1
                tl.debug_barrier()
                tl.store(frequencies + x, frequency, mask=used)
                tl.atomic_add(at_least + frequency, 1, used, sem="relaxed")
            tl.debug_barrier()
            if t >= m:
                leaving = token - m * token_stride
                for first_slot in range(0, slots, SLOTS):
                    used, x = _uses(leaving, first_slot + slot_lanes, slots, top_k, num_experts)
                    frequency = tl.load(frequencies + x, mask=used, other=0)
                    tl.debug_barrier()
                    tl.store(frequencies + x, frequency - 1, mask=used)
                    tl.atomic_add(at_least + frequency, -1, used, sem="relaxed")
                tl.debug_barrier()
            if t >= m - 1:
                for first_level in range(1, m + 1, LEVELS):
                    v = first_level + level_lanes
                    count = tl.load(at_least + v, mask=v <= m, other=0)
                    tl.atomic_add(ends_at + count, one, count > 0, sem="relaxed")
            token += token_stride
            tl.debug_barrier()


@triton.jit
def find_next_uses(
    experts,
    lengths,
    sequences,
    num_caches,
    slots,
    top_k,
    num_experts,
    sequence_stride,
    token_stride,
    num_ids,
    moments,
    next_uses,  # by moment: the moment of the expert's next use, or the number of moments
    soonest,  # by expert, among the tokens passed
    owners,  # by moment: the expert used then
    SLOTS: tl.constexpr,
):
    job, token, length = _place(experts, lengths, sequences, num_caches, slots, sequence_stride)
    next_uses += job * moments
    soonest += job * num_ids
    owners += job * moments
    slot_lanes = tl.arange(0, SLOTS)
    token += length * token_stride
    for back in range(length):
        token -= token_stride
        for first_slot in range(0, slots, SLOTS):
            slot = first_slot + slot_lanes
            moment = (length - 1 - back) * slots + slot
            used, x = _uses(token, slot, slots, top_k, num_experts)
            soon = tl.load(soonest + x, mask=used, other=0)
            tl.debug_barrier()
            tl.store(next_uses + moment, tl.where(soon < 0, moments, soon), mask=used)
            tl.store(soonest + x, moment, mask=used)
            tl.store(owners + moment, x, mask=used)
        tl.debug_barrier()


@triton.jit
def _moment(key, moments, no_moment, POLICY: tl.constexpr):
    """A moment when the expert of a key is used."""
    if POLICY == _BELADY:
        return tl.where(key > 0, moments - key, -1 - key)
    return key & ~no_moment


@triton.jit
def priority(
    experts,
    lengths,
    sequences,
    num_caches,
    slots,
    top_k,
    num_experts,
    sequence_stride,
    token_stride,
    num_ids,
    moments,
    new_hits,
    stacks,  # keys by depth
    keys,  # by expert, but for Belady
    depths,  # by expert; -1 = never used
    owners,  # by moment: the expert used then; for Belady known beforehand
    next_uses,  # by moment, for Belady, see `find_next_uses`
    m,
    moment_bits,
    POLICY: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK: tl.constexpr,  # places
    BLOCKS: tl.constexpr,
    HIGHEST: tl.constexpr,  # above every key: where nothing stands
):
    job, token, length = _place(experts, lengths, sequences, num_caches, slots, sequence_stride)
    new_hits += job * num_ids
    stacks += job * num_ids
    keys += job * num_ids
    depths += job * num_ids
    owners += job * moments
    next_uses += job * moments
    one = tl.full([1], 1, new_hits.dtype.element_ty)
    KEY: tl.constexpr = stacks.dtype.element_ty
    one_key = tl.full([1], 1, KEY)
    one_ahead = one_key << moment_bits
    no_moment = tl.full([], -1, KEY) << moment_bits
    slot_lanes = tl.arange(0, SLOTS)
    lanes = tl.arange(0, BLOCK)
    block_lanes = tl.arange(0, BLOCKS)
    # Lowest key of each block, or less; the top of the stack counts in none.
    bounds = tl.full([BLOCKS], HIGHEST, KEY)
    height = 0
    if POLICY == _LOOKAHEAD:
        entering = token
        for _ in range(tl.minimum(m, length)):
            for first_slot in range(0, slots, SLOTS):
                used, x = _uses(entering, first_slot + slot_lanes, slots, top_k, num_experts)
                key = tl.load(keys + x, mask=used, other=0)
                tl.debug_barrier()
                tl.store(keys + x, key + one_ahead, mask=used)
            entering += token_stride
            tl.debug_barrier()
    for t in range(length):
        seen = height
        for first_slot in range(0, slots, SLOTS):
            used, x = _uses(token, first_slot + slot_lanes, slots, top_k, num_experts)
            depth = tl.load(depths + x, mask=used, other=0)
            is_new = depth < 0
            depth = tl.where(is_new, seen + tl.cumsum(is_new.to(tl.int32), axis=0) - 1, depth)
            tl.atomic_add(new_hits + depth, one, used, sem="relaxed")
            seen += tl.sum(is_new.to(tl.int32))
            if POLICY != _BELADY:
                tl.store(owners + t * slots + first_slot + slot_lanes, x, mask=used)
        tl.debug_barrier()
        for slot in range(slots):
            e = tl.load(token + slot).to(tl.int32)
            if e >= 0:
                x = slot // top_k * num_experts + e
                moment = t * slots + slot
                if POLICY == _BELADY:
                    # Sooner is higher. Experts without another use are all alike, but told apart.
                    soon = tl.load(next_uses + moment)
                    key = tl.where(soon < moments, moments - soon, -1 - moment).to(KEY)
                else:
                    count = tl.load(keys + x) >> moment_bits
                    # Once taken, an expert has one use more behind it, or one less ahead.
                    count += 1 if POLICY == _LFU else -1
                    key = (count << moment_bits) | moment
                hole = tl.load(depths + x)
                is_new = hole < 0
                hole = tl.where(is_new, height, hole)
                height += is_new.to(tl.int32)
                tl.debug_barrier()
                if POLICY != _BELADY:
                    tl.store(keys + x, key)
                if hole > 0:
                    # What was on top is carried down to the hole; the lower key moves on.
                    carried = tl.load(stacks)
                    last = hole // BLOCK
                    lower = (bounds < carried) & (block_lanes <= last)
                    block = tl.min(tl.where(lower, block_lanes, BLOCKS))
                    while block <= last:
                        place = block * BLOCK + lanes
                        inside = (place > 0) & (place < height) & (place != hole)
                        resident = tl.load(stacks + place, mask=inside, other=HIGHEST)
                        inside = (lanes > 0) & (place > 1) & (place < hole)
                        above = tl.load(stacks + place - 1, mask=inside, other=HIGHEST)
                        arriving = tl.minimum(tl.associative_scan(above, 0, _least), carried)
                        passed = place < hole
                        moves = passed & (arriving > resident)
                        tl.debug_barrier()
                        tl.store(stacks + place, arriving, mask=moves)
                        at = _moment(arriving, moments, no_moment, POLICY)
                        owner = tl.load(owners + at, mask=moves, other=0)
                        tl.store(depths + owner, place, mask=moves)
                        lowest = tl.min(tl.where(moves, arriving, resident))
                        bounds = tl.where(block_lanes == block, lowest, bounds)
                        beyond = tl.min(tl.where(passed, resident, HIGHEST))
                        carried = tl.minimum(carried, beyond)
                        lower = (bounds < carried) & (block_lanes > block) & (block_lanes <= last)
                        block = tl.min(tl.where(lower, block_lanes, BLOCKS))
                    tl.store(stacks + hole, carried)
                    owner = tl.load(owners + _moment(carried, moments, no_moment, POLICY))
                    tl.store(depths + owner, hole)
                    filled = tl.minimum(bounds, carried)
                    bounds = tl.where(block_lanes == last, filled, bounds)
                    tl.debug_barrier()
                tl.store(stacks, key)
                tl.store(depths + x, 0)
                tl.debug_barrier()
        if POLICY == _LOOKAHEAD and t + m < length:
            entering = token + m * token_stride
            for first_slot in range(0, slots, SLOTS):
                used, x = _uses(entering, first_slot + slot_lanes, slots, top_k, num_experts)
                key = tl.load(keys + x, mask=used, other=0) + one_ahead
                depth = tl.load(depths + x, mask=used, other=-1)
                tl.debug_barrier()
                tl.store(keys + x, key, mask=used)
                tl.store(stacks + depth, key, mask=depth >= 0)
            tl.debug_barrier()
        token += token_stride
