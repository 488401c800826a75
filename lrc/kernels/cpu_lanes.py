"""Many small stacks side by side: one cache in each lane of a SIMD register.

A stack is walked once a token for all its uses, in `LANES` caches at a time, whatever depth the
experts lie at. That leaves no branch and no look-up: a place of 16 stacks is one row of numbers,
and what happens at it is a comparison, a minimum and a maximum of rows.

The keys are priorities, and those that are looked for are unique: a moment of use is part of them.
So the experts of a token are found in the stack by their keys. 0, below all keys, marks what is
empty. An expert that leaves its place makes it 0; the carried key falls into it (a maximum), and
from there on 0 is carried (a minimum), which changes nothing. A new expert finds no place, so that
the carried key falls into the first empty one.

numba would not vectorize these loops, so they are written in LLVM's vectors (`simd`).
"""

import numpy as np
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from lrc.kernels import simd
from lrc.kernels.rules import BELADY, LFU, LOOKAHEAD, LRU

LANES = 16
# Uses of a token that are walked down together, so that a row is loaded and stored once for them.
TOGETHER = 4
# Narrow keys first: more of them fit into a register.
KEY_TYPES = (np.int16, np.int32)
NONE = -1


@intrinsic
def _find(typingctx, keys, num_places, rises, num_rises, step, uses, num_uses, found):
    """Raise the keys that are in `rises` by a step; count the `uses` by place in `found`.

    There are rows for a multiple of `TOGETHER` rises and uses.
    """

    def code(context, builder, signature, args):
        _, num_places, _, num_rises, step, _, num_uses, _ = args
        keys, rises, uses, found = (
            simd.rows(context, builder, signature, args, i, LANES) for i in (0, 2, 5, 7)
        )
        vector = keys.type.pointee
        step, none = simd.splat(builder, step, vector), simd.constant(vector, 0)
        count = cgutils.alloca_once(builder, vector)

        def number_of(key, rows, num_rows, counted):
            """How many of the rows are the key, and those counted before."""
            builder.store(counted, count)
            with simd.by_steps(builder, num_rows, TOGETHER) as first:
                counted = builder.load(count)
                for i in range(TOGETHER):
                    row = simd.load(builder, rows, builder.add(first, simd.index(i)))
                    same = builder.icmp_signed("==", key, row)
                    counted = builder.sub(counted, builder.sext(same, vector))
                builder.store(counted, count)
            return builder.load(count)

        with cgutils.for_range(builder, num_places) as place:
            key = simd.load(builder, keys, place.index)
            # 0 or 1; all bits, to choose with, where it is 1.
            rising = builder.neg(number_of(key, rises, num_rises, none))
            key = builder.add(key, builder.and_(rising, step))
            simd.store(builder, key, keys, place.index)
            counted = simd.load(builder, found, place.index)
            counted = number_of(key, uses, num_uses, counted)
            simd.store(builder, counted, found, place.index)
        return context.get_dummy_value()

    arguments = (keys, types.intp, rises, types.intp, keys.dtype, uses, types.intp, found)
    return types.void(*arguments), code


@intrinsic
def _sink(typingctx, keys, num_places, uses, carried, num_uses):
    """Take the uses one after the other: carry the keys in `carried` down to their places.

    There are rows for a multiple of `TOGETHER` uses.
    """

    def code(context, builder, signature, args):
        num_places, num_uses = args[1], args[4]
        keys, uses, carried = (
            simd.rows(context, builder, signature, args, i, LANES) for i in (0, 2, 3)
        )
        vector = keys.type.pointee
        none = simd.constant(vector, 0)
        in_hand = [cgutils.alloca_once(builder, vector) for _ in range(TOGETHER)]
        with simd.by_steps(builder, num_uses, TOGETHER) as first:
            leaving = []
            for i, slot in enumerate(in_hand):
                use = builder.add(first, simd.index(i))
                builder.store(simd.load(builder, carried, use), slot)
                leaving.append(simd.load(builder, uses, use))
            with cgutils.for_range(builder, num_places) as place:
                key = simd.load(builder, keys, place.index)
                for slot, leaves in zip(in_hand, leaving, strict=True):
                    key = builder.select(builder.icmp_signed("==", key, leaves), none, key)
                    lower, key = simd.min_max(builder, key, builder.load(slot))
                    builder.store(lower, slot)
                simd.store(builder, key, keys, place.index)
        return context.get_dummy_value()

    return types.void(keys, types.intp, uses, carried, types.intp), code


def keys_that_hold(policy, segment_length, longest, uses):
    """Type of the keys for a cache of so many tokens and uses (or None), and bits of a moment.

    An expert is used once a token at most.
    """
    priorities = {LRU: 0, BELADY: 0, LFU: longest, LOOKAHEAD: min(segment_length, longest)}
    moment_bits = (uses + 1).bit_length()
    return simd.narrowest(moment_bits + priorities[policy].bit_length(), KEY_TYPES), moment_bits


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
    num_sequences, num_tokens, num_layers, top_k = experts.shape
    lengths = lengths[sequences]
    longest = int(lengths.max(initial=0))
    uses = longest * layers_a_cache * top_k
    key_type, moment_bits = keys_that_hold(policy, segment_length, longest, uses)
    experts = experts.reshape(num_sequences * num_tokens, num_layers * top_k)
    # Lanes wait for the longest of them.
    order = lengths.argsort(kind="stable")
    for start in range(0, len(order), LANES):
        group = order[start : start + LANES]
        counted = np.zeros((len(group), new_hits.shape[1]), np.int64)
        _replay_group(
            segment_length - 1 if policy == LOOKAHEAD else -1,
            {LFU: 1, LOOKAHEAD: -1}.get(policy, 0),
            moment_bits,
            policy == BELADY,
            experts,
            lengths[group],
            sequences[group] * num_tokens,
            first_layers[group] * top_k,
            np.repeat(np.arange(layers_a_cache) * num_experts, top_k),
            np.zeros((new_hits.shape[1], LANES), key_type),
            counted,
        )
        new_hits[group] = counted


@njit(cache=True, nogil=True)
def _replay_group(
    ahead,
    priority_step,
    moment_bits,
    backwards,
    experts,
    lengths,
    first_rows,
    first_columns,
    ids,
    keys,
    new_hits,
):
    """Replay up to `LANES` caches at once.

    Parameters
    ----------
    ahead : int
        Tokens after the current one whose uses are in the priority; -1 = not even its own.
    priority_step : int
        What a use adds to the priority: 1, 0 or -1.
    moment_bits : int
        Bits of a key below the priority.
    backwards : bool
        A key is the higher the sooner the next use is (Belady), not the later the last one.
    experts : int16 array [sequences * tokens, layers * top_k]
    lengths, first_rows, first_columns : int64 arrays [caches]
        Tokens of each cache, and the corner of `experts` where they begin.
    ids : int64 array [columns]
        What to add to an expert of each column of a cache, to tell layers apart.
    keys : int16 or int32 array [places, LANES]
        The stacks; all 0.
    new_hits : int64 array [caches, places]
        All 0.
    """
    num_places, num_caches = len(keys), len(lengths)
    columns = len(ids)
    width = -(-columns // TOGETHER) * TOGETHER
    found = np.zeros((num_places, LANES), keys.dtype)
    rises = np.full((width, LANES), NONE, keys.dtype)
    uses = np.full((width, LANES), NONE, keys.dtype)
    carried = np.zeros((width, LANES), keys.dtype)
    tops = np.zeros(LANES, keys.dtype)
    # One more, of no expert: what is on top of an empty stack.
    key_of = np.zeros((num_caches, num_places + 1), keys.dtype)
    last_used = np.full(LANES, num_places, np.int64)
    moments, height = np.zeros(LANES, np.int64), np.zeros(LANES, np.int64)
    one, longest, places = 1 << moment_bits, 0, 0
    for length in lengths:
        longest = max(longest, length)
    sooner = np.empty((num_caches, longest * columns + 1 if backwards else 0), keys.dtype)
    for lane in range(num_caches if backwards else 0):
        rows = experts[first_rows[lane] : first_rows[lane] + lengths[lane], first_columns[lane] :]
        _look_back(rows, ids, key_of[lane], sooner[lane])
    for t in range(min(ahead, longest)):
        _enter(t, experts, lengths, first_rows, first_columns, ids, one, key_of, rises)
    for t in range(longest):
        if 0 <= ahead < longest - t:
            _enter(t + ahead, experts, lengths, first_rows, first_columns, ids, one, key_of, rises)
        _use(
            *(t, experts, lengths, first_rows, first_columns, ids, one, one * priority_step),
            *(sooner, key_of, last_used, moments, height, uses, carried, tops),
        )
        for lane in range(num_caches):
            places = max(places, height[lane])
        num_rises = columns if 0 <= ahead < longest - t else 0
        _find(keys, places, rises, num_rises, one, uses, columns, found)
        _sink(keys[1:], places - 1, uses, carried, columns)
        for lane in range(num_caches):
            keys[0, lane] = tops[lane]
    for lane in range(num_caches):
        for place in range(height[lane]):
            # The n-th distinct expert is charged to depth n.
            new_hits[lane, place] = found[place, lane] + 1


@njit(cache=True, nogil=True)
def _enter(t, experts, lengths, first_rows, first_columns, ids, one, key_of, rises):
    """Token t comes into view: raise its keys, list those in the stack as they were."""
    for lane in range(np.uintp(len(lengths))):
        if t >= lengths[lane]:
            rises[:, lane] = NONE
            continue
        token = experts[np.uintp(first_rows[lane] + t), first_columns[lane] :]
        key = key_of[lane]
        for j in range(np.uintp(len(ids))):
            raised = NONE
            if token[j] >= 0:
                x = np.uintp(ids[j] + token[j])
                old = key[x]
                key[x] = old + one
                # A key without a moment is not in the stack yet.
                raised = old if old & (one - 1) else NONE
            rises[j, lane] = raised


@njit(cache=True, nogil=True)
def _use(
    t,
    experts,
    lengths,
    first_rows,
    first_columns,
    ids,
    one,
    step,
    sooner,
    key_of,
    last_used,
    moments,
    height,
    uses,
    carried,
    tops,
):
    """Token t is used: list the keys of its experts, and of those that they push down."""
    kept = -one if step else 0
    for lane in range(np.uintp(len(lengths))):
        if t >= lengths[lane]:
            uses[:, lane] = NONE
            carried[:, lane] = 0
            continue
        token = experts[np.uintp(first_rows[lane] + t), first_columns[lane] :]
        key = key_of[lane]
        moment, last, first_uses = moments[lane], last_used[lane], 0
        top = np.intp(key[last])
        for j in range(np.uintp(len(ids))):
            leaves, pushed = NONE, 0
            if token[j] >= 0:
                last = ids[j] + token[j]
                x = np.uintp(last)
                moment += 1
                old = np.intp(key[x])
                new = (old & kept) + step + moment
                if sooner.size:
                    new = np.intp(sooner[lane, np.uintp(moment)])
                key[x] = new
                is_first = (old & (one - 1)) == 0
                first_uses += is_first
                leaves = NONE if is_first else old
                # An expert that is on top already leaves nothing to carry.
                pushed = 0 if old == top else top
                top = new
            uses[j, lane] = leaves
            carried[j, lane] = pushed
        moments[lane], last_used[lane], tops[lane] = moment, last, top
        height[lane] += first_uses


@njit(cache=True, nogil=True)
def _look_back(rows, ids, next_key, sooner):
    """Key of each use's expert after it: the sooner the next use, the higher; 1 for no other.

    `sooner` is by moment, from 1; `next_key` is for use here and all 0 before and after.
    """
    num_uses = 0
    for t in range(len(rows)):
        for column in range(len(ids)):
            num_uses += rows[t, column] >= 0
    moment = num_uses
    for t in range(len(rows) - 1, -1, -1):
        for column in range(len(ids) - 1, -1, -1):
            if rows[t, column] >= 0:
                x = ids[column] + rows[t, column]
                sooner[moment] = max(next_key[x], 1)
                next_key[x] = num_uses - moment + 2
                moment -= 1
    next_key[:] = 0
