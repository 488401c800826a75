"""Caches of every size in one pass, on a GPU: a program replays one sequence on one stack.

What is counted is said in `lrc.kernels.cpu_caches`; here is how a warp does it.

Priorities (`lrc.kernels.gpu_stacks`). Experts are taken one after the other, but each takes few
steps: the minimum that runs down the stack is a scan over a block of it, lowest keys of the blocks
stand in registers and tell in one comparison which block is the next to hold anything lower than
what is carried, and only keys that move are written.

LRU. The stack is the experts by last use, so a token's uses are found and closed up together: one
pass over the stack a token, a running sum telling where each of the others moves to.

Best sets of windows. The numbers of experts used v times or more change by one a use; they are
kept, and counted, by v.

Everything lies in a piece of memory of the program's own; threads of a program wait for each other
(`debug_barrier`) before they read what others wrote.
"""

import triton

from lrc.errors import LrcError
from lrc.kernels import gpu_stacks as stacks
from lrc.kernels.gpu_arrays import block_bytes, load_torch, on_device_of, to_device_of
from lrc.kernels.rules import BELADY, LFU, LOOKAHEAD, LRU, STATIC

# Lanes of a program: slots of a token at most, places of a stack.
SLOTS = 1024
PLACES = 256
# Places of a priority stack that share a lowest key.
BLOCK = 64
# Bits of keys that take half the steps.
SHORT = 31


def count_new_hits(policy, segment_length, experts, lengths, sequences, num_experts, shared):
    """Replay sequences, each from an empty cache, and count the uses by depth.

    Parameters and result are those of `lrc.kernels.cpu_caches.count_new_hits`, but that `experts`
    and the result are tensors, the result of int32 where that is enough.

    Raises
    ------
    LrcError
        A sequence too long for keys of 63 bits.
    """
    torch = load_torch()
    _, _, num_layers, top_k = experts.shape
    num_caches, layers_a_cache = (1, num_layers) if shared else (num_layers, 1)
    num_ids, slots = layers_a_cache * num_experts, layers_a_cache * top_k
    longest = int(lengths[sequences].max(initial=0))
    segment_length = min(segment_length, longest + 1)
    bits = _key_bits(policy, segment_length, longest, slots)
    most = longest * slots * (segment_length if policy == STATIC else 1)
    dtype = torch.int32 if most < 2**31 else torch.int64
    shape = (len(sequences) * num_caches, num_ids)
    new_hits = torch.zeros(shape, dtype=dtype, device=experts.device)
    # Sequences as many at a time as their stacks have room.
    tables = {LRU: 0, STATIC: 0, BELADY: 2}.get(policy, 1)
    room = 24 * num_ids + 4 * longest * slots * tables + 4 * segment_length
    step = max(1, block_bytes(experts) // (room * num_caches))
    experts = experts.contiguous()
    lengths = to_device_of(experts, lengths)
    for start in range(0, len(sequences) if longest else 0, step):
        part = to_device_of(experts, sequences[start : start + step])
        rows = slice(start * num_caches, (start + len(part)) * num_caches)
        with on_device_of(experts):
            _replay(
                *(policy, segment_length, experts, lengths, part, num_caches, slots),
                *(num_experts, num_ids, longest, bits, new_hits[rows]),
            )
    return new_hits.reshape(len(sequences), num_caches, num_ids)


def _key_bits(policy, segment_length, longest, slots):
    """Bits of a key, from above: what is counted of an expert, and a moment."""
    count = {LFU: longest, LOOKAHEAD: segment_length}.get(policy, 0)
    bits = count.bit_length(), (longest * slots).bit_length()
    if sum(bits) > 62:
        raise LrcError(
            f"a sequence of {longest} tokens is too long for the GPU's keys: split it, or give "
            "trace.to('cpu')"
        )
    return bits


def _replay(
    policy,
    segment_length,
    experts,
    lengths,
    sequences,
    num_caches,
    slots,
    num_experts,
    num_ids,
    longest,
    bits,
    new_hits,
):
    torch = load_torch()
    num_tokens, num_layers, top_k = experts.shape[1:]
    jobs = len(new_hits)

    def scratch(fill, width=num_ids, dtype=torch.int32):
        return torch.full((jobs, width), fill, dtype=dtype, device=experts.device)

    trace = (experts, lengths, sequences, num_caches, slots, top_k, num_experts)
    trace += (num_tokens * num_layers * top_k, num_layers * top_k, num_ids)
    lanes = {"SLOTS": min(SLOTS, triton.next_power_of_2(slots)), "num_warps": 1}
    if policy == LRU:
        places = min(PLACES, triton.next_power_of_2(num_ids))
        stacks.lru[(jobs,)](*trace, new_hits, scratch(-1), scratch(0), PLACES=places, **lanes)
    elif policy == STATIC:
        ends_at = torch.zeros((jobs, num_ids + 1), dtype=new_hits.dtype, device=new_hits.device)
        at_least = scratch(0, segment_length + 2)
        levels = min(PLACES, triton.next_power_of_2(segment_length))
        stacks.static[(jobs,)](
            *(*trace, ends_at, scratch(0), at_least, segment_length), LEVELS=levels, **lanes
        )
        # Slot r adds the r-th largest frequency: the number of v with more than r experts.
        new_hits.copy_(ends_at[:, 1:].flip(1).cumsum(1).flip(1))
    else:
        moments = longest * slots
        owners = scratch(0, moments)
        next_uses = scratch(0, moments if policy == BELADY else 1)
        if policy == BELADY:
            soonest = scratch(-1)
            stacks.find_next_uses[(jobs,)](*trace, moments, next_uses, soonest, owners, **lanes)
        dtype = torch.int32 if sum(bits) <= SHORT else torch.int64
        keys = scratch(0, dtype=dtype)
        block = min(BLOCK, triton.next_power_of_2(num_ids))
        stacks.priority[(jobs,)](
            *(*trace, moments, new_hits, torch.empty_like(keys), keys, scratch(-1)),
            *(owners, next_uses, segment_length, bits[1]),
            POLICY=policy,
            BLOCK=block,
            BLOCKS=triton.next_power_of_2(num_ids // block + 1),
            HIGHEST=torch.iinfo(dtype).max,
            **lanes,
        )
