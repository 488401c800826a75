"""Responses of vLLM and SGLang servers, and the objects of vLLM's offline engine.

vLLM puts an array into ``choices[].routed_experts``: base64 of a .npy (recent), or nested lists of
the completion beside ``prompt_routed_experts`` of the response (v0.21). SGLang puts base64 of bare
int32 into ``meta_info.routed_experts`` or ``choices[].sgl_ext.routed_experts``, without its shape.
A text has a row for each token that was run: all but the last one sampled.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from lrc.errors import TraceError
from lrc.importers.log import Log, Options, Routes
from lrc.importers.npy import NPY_MAGIC, as_count, as_ids, as_list, decode_base64, parse_npy


def read_vllm(source, name: str, options: Options) -> Log:
    """Read responses of vLLM: a file, parsed responses, or the outputs of ``LLM.generate``."""
    return _read(source, name, options, "vllm", _vllm_choices)


def read_sglang(source, name: str, options: Options) -> Log:
    """Read responses of an SGLang server: a file, or parsed responses."""
    return _read(source, name, options, "sglang", _sglang_choices)


def kind_of(document) -> str | None:
    """Which engine a parsed response, or an output object, is of."""
    document = next(iter(_unpacked(document)), None)
    if document is None or not isinstance(document, dict):
        return None
    choices = document.get("choices")
    choices = [c for c in choices if isinstance(c, dict)] if isinstance(choices, list) else []
    info = document.get("meta_info")
    if isinstance(info, dict) or any("sgl_ext" in choice for choice in choices):
        return "sglang"
    if "prompt_routed_experts" in document or any("routed_experts" in c for c in choices):
        return "vllm"
    return None


def documents(path: Path) -> Iterator:
    """JSON values of a file that holds one, or one on each line."""
    try:
        with open(path, encoding="utf-8") as file:
            first = file.readline()
            try:
                value = json.loads(first)
            except json.JSONDecodeError:
                yield json.loads(first + file.read())
                return
            yield value
            for number, line in enumerate(file, 2):
                if line.strip():
                    try:
                        yield json.loads(line)
                    except json.JSONDecodeError as error:
                        raise TraceError(
                            f"{path.name}, line {number}: no JSON, or cut short ({error.msg})"
                        ) from error
    except json.JSONDecodeError as error:
        raise TraceError(f"{path.name}: no JSON, or cut short ({error})") from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise TraceError(f"{path.name}: no JSON ({error})") from error


def _read(source, name, options, engine, choices):
    given = documents(source) if isinstance(source, Path) else [source]
    routes, models = [], set()
    responses = (one for document in given for one in _unpacked(document))
    for number, response in enumerate(responses):
        place = f"{name}, response {number}"
        if not isinstance(response, dict):
            raise TraceError(f"{place}: is {type(response).__name__}, but a response is an object")
        if "error" in response and "choices" not in response:
            raise TraceError(f"{place}: is an error of the server, not a completion")
        models.add(str(response.get("model") or ""))
        routes += choices(response, place, options)
    if len(models) > 1:
        raise TraceError(f"{name}: holds responses of {len(models)} models: give one at a time")
    model = next(iter(models), None)
    return Log(routes, engine, meta={"model": model} if model else {})


def _unpacked(document) -> Iterable:
    """Responses in what may be a list of them, a line of a batch file, or an output object."""
    if isinstance(document, list | tuple):
        return [one for item in document for one in _unpacked(item)]
    if isinstance(document, dict) and isinstance(document.get("response"), dict):
        return _unpacked(document["response"].get("body", document["response"]))
    if hasattr(document, "outputs"):  # vLLM's RequestOutput
        names = ("prompt_token_ids", "prompt_routed_experts")
        response = {key: getattr(document, key, None) for key in names}
        return [response | {"choices": [_choice(output) for output in document.outputs]}]
    if hasattr(document, "routed_experts"):  # vLLM's CompletionOutput
        return [{"choices": [_choice(document)]}]
    return [document]


def _choice(output):
    names = ("routed_experts", "token_ids", "routed_experts_prompt_start")
    return {key: getattr(output, key, None) for key in names}


# --- vLLM -------------------------------------------------------------------------------------


def _vllm_choices(response, place, options):
    choices = _choices(response, place)
    head = response.get("prompt_routed_experts")
    for number, choice in enumerate(choices):
        where = f"{place}, choice {number}"
        payload = choice.get("routed_experts")
        if payload is None:
            raise TraceError(
                f"{where}: has no routed_experts; start the server with "
                "--enable-return-routed-experts"
            )
        rows = _array(payload, where, options)
        prompt_ids = choice.get("prompt_token_ids", response.get("prompt_token_ids"))
        prompt_ids = as_list(prompt_ids, f"{where}, prompt_token_ids")
        sampled = as_list(choice.get("token_ids"), f"{where}, token_ids")
        usage, alone = response.get("usage"), len(choices) == 1
        prompt, completion = _counts(usage, prompt_ids, sampled, where, alone=alone)
        start = _start(choice, response, "routed_experts_prompt_start", where, options)
        if head is None:
            _expect(len(rows), prompt, completion, start, where)
        else:
            before = _array(head, f"{place}, prompt_routed_experts", options)
            _expect_split(len(before), len(rows), prompt, completion, start, where)
            if before.shape[1:] != rows.shape[1:]:
                raise TraceError(f"{where}: prompt and completion differ in layers or slots")
            prompt = start + len(before)
            rows = np.concatenate([before, rows])
        ids = _token_ids(prompt_ids, sampled, prompt, start, len(rows))
        yield Routes(rows, where, token_ids=ids, prompt_tokens=prompt, start=start)


def _expect_split(before, after, prompt, completion, start, where):
    if prompt is not None and before != prompt - start:
        raise TraceError(f"{where}: {before} rows for {prompt - start} prompt tokens")
    if completion is not None and after not in (completion, completion - 1):
        raise TraceError(f"{where}: {after} rows for {completion} completion tokens")


# --- SGLang -----------------------------------------------------------------------------------


def _sglang_choices(response, place, options):
    if "meta_info" in response:
        yield _sglang(response["meta_info"], response, {}, place, options, alone=True)
        return
    choices = _choices(response, place)
    for number, choice in enumerate(choices):
        holder, where = choice.get("sgl_ext") or {}, f"{place}, choice {number}"
        yield _sglang(holder, response, choice, where, options, alone=len(choices) == 1)


def _sglang(holder, response, choice, where, options, *, alone):
    payload = holder.get("routed_experts") if isinstance(holder, dict) else None
    if payload is None:
        raise TraceError(
            f"{where}: has no routed_experts; start the server with "
            "--enable-return-routed-experts and ask for return_routed_experts"
        )
    prompt_ids = response.get("prompt_token_ids", response.get("input_ids"))
    prompt_ids = as_list(prompt_ids, f"{where}, prompt_token_ids")
    sampled = response.get("output_ids", choice.get("token_ids"))
    sampled = as_list(sampled, f"{where}, output_ids")
    usage = holder if "prompt_tokens" in holder else response.get("usage")
    prompt, completion = _counts(usage, prompt_ids, sampled, where, alone=alone)
    start = _start(holder, response, "routed_experts_start_len", where, options)
    known = None
    if prompt is not None and completion is not None:
        known = prompt + completion - 1 - start
    rows = _array(payload, where, options, known)
    _expect(len(rows), prompt, completion, start, where)
    ids = _token_ids(prompt_ids, sampled, prompt, start, len(rows))
    return Routes(rows, where, token_ids=ids, prompt_tokens=prompt, start=start)


# --- Both -------------------------------------------------------------------------------------


def _choices(response, place):
    choices = response.get("choices")
    if not isinstance(choices, list) or not all(isinstance(c, dict) for c in choices):
        raise TraceError(f"{place}: has no list of choices")
    return choices


def _array(payload, where, options, known_rows=None):
    """Expert ids [tokens, layers, top_k] of a payload in any of its encodings."""
    if not isinstance(payload, str):
        rows = as_ids(payload, f"{where}, routed_experts")
    else:
        data = decode_base64(payload, f"{where}, routed_experts")
        if data.startswith(NPY_MAGIC):
            rows = as_ids(parse_npy(data, f"{where}, routed_experts"), where)
        else:
            rows = _shaped(data, where, options, known_rows)
    if rows.ndim != 3:
        raise TraceError(
            f"{where}: routed_experts has shape {list(rows.shape)}, but [tokens, layers, top_k] "
            "is needed"
        )
    return rows


def _shaped(data, where, options, known_rows):
    """Bare int32 numbers, in a shape that the caller or the counts of tokens give."""
    if len(data) % 4:
        raise TraceError(f"{where}: routed_experts has {len(data)} bytes, no int32 numbers: cut?")
    numbers = np.frombuffer(data, "<i4")
    layers, top_k = options.num_layers, options.top_k
    a_token = None
    if known_rows and len(numbers) % known_rows == 0:
        a_token = len(numbers) // known_rows
    if a_token and not (layers and top_k):
        if layers and a_token % layers == 0:
            top_k = a_token // layers
        elif top_k and a_token % top_k == 0:
            layers = a_token // top_k
    if not (layers and top_k):
        told = f"{len(numbers):,} numbers"
        if a_token:
            told += f", {a_token} a token: num_layers times top_k"
        raise TraceError(
            f"{where}: routed_experts is sent without its shape ({told}); give num_layers, which "
            "counts dense layers if the engine does, and top_k"
        )
    if len(numbers) % (layers * top_k):
        raise TraceError(
            f"{where}: routed_experts has {len(numbers):,} numbers, which make no whole tokens of "
            f"{layers} layers and top-{top_k}: correct num_layers or top_k"
        )
    return numbers.reshape(-1, layers, top_k)


def _counts(usage, prompt_ids, sampled, where, *, alone):
    """Tokens of prompt and completion, each None where the response does not tell."""
    usage = usage or {}
    if not isinstance(usage, dict):
        raise TraceError(f"{where}: its usage is no object")
    prompt, completion = (
        as_count(usage.get(f"{part}_tokens"), f"{where}, {part}_tokens")
        for part in ("prompt", "completion")
    )
    if not alone:  # then the number is that of all choices together
        completion = None
    return len(prompt_ids) if prompt_ids else prompt, len(sampled) if sampled else completion


def _start(holder, response, key, where, options):
    """Tokens of the prompt that the engine was asked to leave out."""
    said = holder.get(key)
    said = as_count(response.get(key) if said is None else said, f"{where}, {key}")
    if said is not None and options.prompt_start not in (None, said):
        raise TraceError(f"{where}: {key} is {said}, but prompt_start says {options.prompt_start}")
    return said or options.prompt_start or 0


def _expect(rows, prompt, completion, start, where):
    if prompt is None or completion is None:
        return
    expected = prompt + completion - 1 - start
    if rows == expected:
        return
    hint = "correct num_layers and top_k, if they were needed"
    if 0 < expected - rows < prompt:
        hint = (
            f"if the engine left out the first tokens of the prompt, say how many: "
            f"prompt_start={start + expected - rows}"
        )
    raise TraceError(
        f"{where}: {rows:,} rows, but {prompt:,} prompt and {completion:,} completion tokens, of "
        f"which the last is never run, make {expected:,}; {hint}"
    )


def _token_ids(prompt_ids, sampled, prompt, start, rows):
    """Input tokens of the rows, -1 where unknown; None where none is known."""
    if not prompt_ids and (not sampled or prompt is None):
        return None
    ids = np.full(start + rows, -1, np.int64)
    text = list(prompt_ids or [-1] * prompt) + list(sampled or [])
    ids[: len(text)] = text[: len(ids)]
    return ids[start:]
