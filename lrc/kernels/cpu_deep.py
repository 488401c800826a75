"""One deep stack after the other, each walked many places at a time.

A walk is a running minimum, which has a step after the other. It is cut into stripes: a block
of `BLOCK` places is `WIDTH` stripes of `DEPTH` places that follow each other, one in each lane of a
SIMD register. What arrives at a stripe is the minimum of what arrives at the block and of the
stripes before, known from their minima; then all stripes are walked at once. So a place of the
stack lies in the slot ``_slot_of(place)``.

Each stripe has a lower bound of its keys. Keys that stay in place only grow, so a bound may lag
behind but never lies; blocks that cannot hold a key lower than the carried are passed by.

Keys are priorities above a moment of use, which makes them unique and tells whose they are. 0,
below all, marks what is empty.

numba does not see changes of other files when it looks for compiled code on disk, so what a
kernel calls is in its file.
"""

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

from lrc.kernels import simd
from lrc.kernels.rules import BELADY, LFU, LOOKAHEAD, LRU

WIDTH_BITS, DEPTH_BITS = 3, 4
WIDTH, DEPTH = 1 << WIDTH_BITS, 1 << DEPTH_BITS
BLOCK_BITS = WIDTH_BITS + DEPTH_BITS
BLOCK = 1 << BLOCK_BITS
# Keys that are compared at once to find those of a token.
SCANNED = 32
# Narrow keys first: more of them fit into a register.
KEY_TYPES = (np.int32, np.int64)


@intrinsic
def _may_hold_lower(typingctx, bounds, block, carried):
    """Whether a key of a block can be lower than the carried one."""

    def code(context, builder, signature, args):
        rows = simd.rows(context, builder, signature, args, 0, WIDTH)
        bound = simd.load(builder, rows, args[1])
        lower = builder.icmp_signed("<", bound, simd.splat(builder, args[2], bound.type))
        lanes = builder.bitcast(lower, simd.integer(WIDTH))
        return builder.icmp_unsigned("!=", lanes, lanes.type(0))

    return types.boolean(bounds, types.intp, bounds.dtype), code


@intrinsic
def _at_least(typingctx, keys, row, bound):
    """Which of the `SCANNED` keys of a row are not below a bound, as bits."""

    def code(context, builder, signature, args):
        rows = simd.rows(context, builder, signature, args, 0, SCANNED)
        found = simd.load(builder, rows, args[1])
        found = builder.icmp_signed(">=", found, simd.splat(builder, args[2], found.type))
        return builder.zext(builder.bitcast(found, simd.integer(SCANNED)), simd.integer(64))

    return types.uint64(keys, types.intp, keys.dtype), code


@intrinsic
def _lowest_set(typingctx, word):
    """Which is the lowest bit of a word that is set; one is."""

    def code(context, builder, signature, args):
        return builder.cttz(args[0], simd.integer(1)(1))

    return types.int64(types.uint64), code


@intrinsic
def _walk(typingctx, keys, block, carried, bounds):
    """Walk a block with a key, the lower moving on at each place; return what leaves the block."""

    def code(context, builder, signature, args):
        keys, bounds = (simd.rows(context, builder, signature, args, i, WIDTH) for i in (0, 3))
        block, carried = args[1:3]
        first = builder.mul(block, simd.index(DEPTH))
        places = [builder.add(first, simd.index(i)) for i in range(DEPTH)]
        residents = [simd.load(builder, keys, place) for place in places]
        vector = residents[0].type
        highest = simd.constant(vector, (1 << (vector.element.width - 1)) - 1)
        lowest = residents[0]
        for resident in residents[1:]:
            lowest, _ = simd.min_max(builder, lowest, resident)
        # Of all stripes before, by doubling.
        before, steps = simd.shift(builder, lowest, 1, highest), 1
        while steps < WIDTH:
            shifted = simd.shift(builder, before, steps, highest)
            before, _ = simd.min_max(builder, before, shifted)
            steps *= 2
        arrives, _ = simd.min_max(builder, before, simd.splat(builder, carried, vector))
        leaves, _ = simd.min_max(builder, arrives, lowest)
        bound = highest
        for place, resident in zip(places, residents, strict=True):
            arrives, stays = simd.min_max(builder, resident, arrives)
            simd.store(builder, stays, keys, place)
            bound, _ = simd.min_max(builder, bound, stays)
        simd.store(builder, bound, bounds, block)
        return simd.last(builder, leaves)

    return keys.dtype(keys, types.intp, keys.dtype, bounds), code


def replay(
    policy,
    segment_length,
    experts,
    lengths,
    sequences,
    first_layers,
    layers_a_cache,
    num_experts,
    new_hits,
):
    """Replay caches, each from empty, and count the uses by depth; see `cpu_caches`."""
    longest = int(lengths[sequences].max(initial=0))
    bits = (longest * layers_a_cache * experts.shape[3] + 1).bit_length()
    bits += {LFU: longest, LOOKAHEAD: segment_length}.get(policy, 0).bit_length()
    slots = -(-new_hits.shape[1] // BLOCK) * BLOCK
    _replay(
        *(policy, segment_length, experts, lengths, sequences, first_layers, layers_a_cache),
        *(num_experts, np.zeros(slots, simd.narrowest(bits, KEY_TYPES)), new_hits),
    )


@njit(cache=True, nogil=True)
def _replay(
    policy,
    segment_length,
    experts,
    lengths,
    sequences,
    first_layers,
    layers_a_cache,
    num_experts,
    keys,
    new_hits,
):
    num_ids = layers_a_cache * num_experts
    ids = np.empty(experts.shape[1] * layers_a_cache * experts.shape[3], np.int32)
    starts = np.empty(experts.shape[1] + 1, np.int64)
    for job in range(len(sequences)):
        i, first = sequences[job], first_layers[job]
        length = lengths[i]
        part = experts[i, :length, first : first + layers_a_cache]
        num_uses = flatten(part, num_experts, ids, starts)
        uses, ends = ids[:num_uses], starts[: length + 1]
        keys[:] = 0
        if policy == LRU:
            _lru(uses, ends, num_ids, new_hits[job])
        elif policy == BELADY:
            _belady(uses, ends, keys, new_hits[job])
        else:
            _most_used(uses, ends, keys, new_hits[job], segment_length, policy == LOOKAHEAD)


@njit(cache=True, nogil=True)
def flatten(experts, num_experts, ids, starts):
    """List the uses of one sequence: token t uses ``ids[starts[t] : starts[t + 1]]``.

    Layer and expert become one id; slots without an expert are left out.
    """
    num_tokens, num_layers, top_k = experts.shape
    n = 0
    starts[0] = 0
    for t in range(num_tokens):
        for j in range(num_layers):
            for k in range(top_k):
                e = experts[t, j, k]
                if e >= 0:
                    ids[n] = j * num_experts + e
                    n += 1
        starts[t + 1] = n
    return n


@njit(cache=True, nogil=True)
def _lru(ids, starts, num_ids, new_hits):
    # The stack is the experts by last use, so no priority need be compared. Kept with its top at
    # the end: one forward pass a token finds every depth and closes the gaps.
    stack = np.empty(num_ids, np.int32)
    last_token = np.full(num_ids, -1, np.int32)
    height = 0
    for t in range(len(starts) - 1):
        first_uses = 0
        for i in range(starts[t], starts[t + 1]):
            if last_token[ids[i]] < 0:
                new_hits[height + first_uses] += 1
                first_uses += 1
            last_token[ids[i]] = t
        kept = 0
        for place in range(height):
            x = stack[place]
            if last_token[x] == t:
                new_hits[height - 1 - place] += 1
            else:
                stack[kept] = x
                kept += 1
        for i in range(starts[t], starts[t + 1]):
            stack[kept] = ids[i]
            kept += 1
        height = kept


@njit(cache=True, nogil=True)
def _slot_of(place):
    inside = (place & (DEPTH - 1)) << WIDTH_BITS | (place >> DEPTH_BITS) & (WIDTH - 1)
    return place & -BLOCK | inside


@njit(cache=True, nogil=True)
def _place_of(slot):
    inside = (slot & (WIDTH - 1)) << DEPTH_BITS | (slot >> WIDTH_BITS) & (DEPTH - 1)
    return slot & -BLOCK | inside


@njit(cache=True, nogil=True)
def _belady(ids, starts, keys, new_hits):
    """Replay one cache that gives up what is used again the latest; see `_most_used`.

    Only this policy tells from the keys alone which experts a token uses, so that it need not keep
    track of where all others lie.
    """
    num_uses, num_ids = len(ids), len(new_hits)
    # Sooner is higher, from `num_uses` for use 0 down. 1 is below the key of all that have another
    # use; which of those that have none goes first changes no hit.
    first_key = num_uses + 1
    after = np.empty(num_uses, keys.dtype)
    is_first = np.ones(num_uses, np.bool_)
    next_use = np.full(num_ids, num_uses, np.int64)
    for i in range(num_uses - 1, -1, -1):
        x = np.uintp(ids[i])
        after[i] = first_key - next_use[x]
        if next_use[x] < num_uses:
            is_first[next_use[x]] = False
        next_use[x] = i
    slots = np.empty(num_ids, np.int64)
    bounds = np.zeros(len(keys) // DEPTH, keys.dtype)
    height = 0
    for t in range(len(starts) - 1):
        # The experts of the token are those whose use is next: their keys are above all others'.
        start, end = starts[t], starts[t + 1]
        lowest = keys.dtype.type(first_key - end + 1)
        row, to_find = 0, 0
        for i in range(start, end):
            to_find += not is_first[i]
        while to_find > 0:
            found = _at_least(keys, row, lowest)
            while found:
                slot = row * SCANNED + _lowest_set(found)
                found &= found - np.uint64(1)
                slots[first_key - keys[slot] - start] = slot
                new_hits[_place_of(slot)] += 1
                to_find -= 1
            row += 1
        for i in range(start, end):
            if is_first[i]:
                # The n-th distinct expert is charged to depth n.
                new_hits[height] += 1
                slot = _slot_of(height)
                height += 1
            else:
                slot = _sunk(keys, slots[i - start], first_key - i)
            _take(slot, after[i], keys, bounds)


@njit(cache=True, nogil=True)
def _most_used(ids, starts, keys, new_hits, segment_length, known):
    """Replay one cache that gives up what is used least: so far, or in the next tokens.

    Parameters
    ----------
    ids : int32 array [uses]
        Experts as they are used.
    starts : int64 array [tokens + 1]
        Token t uses ``ids[starts[t] : starts[t + 1]]``.
    keys : int32 or int64 array [slots]
        The stack, empty: all 0. A key holds a number of tokens above one of uses.
    new_hits : int64 array [places]
        Uses by depth, to be added to.
    segment_length : int
        Tokens from the current one on that are known, if any is.
    known : bool
        Count the uses in the known tokens, not those so far.
    """
    num_uses, num_ids, num_tokens = len(ids), len(new_hits), len(starts) - 1
    one = 1
    while one <= num_uses:
        one *= 2
    # Once taken, an expert has this use behind, no longer ahead.
    step = -one if known else one
    expert_of = np.empty(num_uses + 1, np.int32)
    expert_of[0] = num_ids
    for i in range(num_uses):
        expert_of[i + 1] = ids[i]
    before, after = np.empty(num_uses, keys.dtype), np.empty(num_uses, keys.dtype)
    key = np.zeros(num_ids, keys.dtype)
    for x in ids[: starts[min(segment_length, num_tokens)] if known else 0]:
        key[x] += one
    slots = np.full(num_ids + 1, -1, np.int32)
    bounds = np.zeros(len(keys) // DEPTH, keys.dtype)
    height = 0
    for t in range(num_tokens):
        for i in range(starts[t], starts[t + 1]):
            x = ids[i]
            before[i] = key[x]
            key[x] = (key[x] & -one) + step + i + 1
            after[i] = key[x]
        token = slice(starts[t], starts[t + 1])
        height = _use(
            *(ids[token], before[token], after[token], one - 1, expert_of),
            *(slots, keys, bounds, height, new_hits),
        )
        if known and t + segment_length < num_tokens:
            for x in ids[starts[t + segment_length] : starts[t + segment_length + 1]]:
                key[x] += one
                if slots[x] >= 0:
                    keys[slots[x]] = key[x]


@njit(cache=True, nogil=True)
def _use(ids, before, after, moment_mask, expert_of, slots, keys, bounds, height, new_hits):
    """Look the experts of one token up, then take them one after the other.

    `before` and `after` are their keys, `expert_of` says whose key it is by its moment, `slots`
    where each expert lies (-1 = never used). Returns the new height of the stack.
    """
    for x in ids:
        if slots[x] >= 0:
            new_hits[_place_of(slots[x])] += 1
    last = -1
    for i in range(len(ids)):
        slot = np.intp(slots[ids[i]])
        if slot < 0:
            # The n-th distinct expert is charged to depth n.
            new_hits[height] += 1
            slot = _slot_of(height)
            height += 1
        else:
            slot = _sunk(keys, slot, before[i])
        last = max(last, slot >> BLOCK_BITS)
        _take(slot, after[i], keys, bounds)
    for slot in range((last + 1) << BLOCK_BITS):
        slots[expert_of[keys[slot] & moment_mask]] = slot
    return height


@njit(cache=True, nogil=True)
def _sunk(keys, slot, key):
    """Where a key lies that lay in a slot when the token began, and may have sunk since."""
    if keys[slot] != key:
        place = _place_of(slot)
        while keys[slot] != key:
            place += 1
            slot = _slot_of(place)
    return slot


@njit(cache=True, nogil=True)
def _take(slot, key, keys, bounds):
    """Carry the top down to the slot that an expert leaves, and put its new key on top."""
    if slot > 0:
        # The carried key falls into the slot, for that is lowest, and leaves 0 to be carried on.
        # Where it comes from nothing stays.
        carried = keys[0]
        keys[0] = (1 << (8 * keys.itemsize - 1)) - 1
        keys[slot] = 0
        last = slot >> BLOCK_BITS
        bounds[(last << WIDTH_BITS) + (slot & (WIDTH - 1))] = 0
        for block in range(last + 1):
            if _may_hold_lower(bounds, block, carried):
                carried = _walk(keys, block, carried, bounds)
    keys[0] = key
