"""One turn of llama.cpp on its low-level batch API: one sequence id an agent, the shared prompt copied with
`llama_memory_seq_cp`. Prints a line of JSON for each figure."""

import argparse
import ctypes

import llama_cpp as ll
import numpy as np

from workload import TEXT, Workload, emit, figure, peak_mib, timed

# How a context may be set up: one KV buffer for all sequences or one each, flash attention on or off.
VARIANTS = {
    f"{'unified' if unified else 'split'}{'-flash' if flash else ''}": (unified, flash)
    for unified in (True, False)
    for flash in (True, False)
}


class Model:
    def __init__(self, path, threads):
        params = ll.llama_model_default_params()
        self.handle = ll.llama_model_load_from_file(str(path).encode(), params)
        if not self.handle:
            raise SystemExit(f"llama.cpp does not load {path}")
        self.vocab = ll.llama_model_get_vocab(self.handle)
        self.size = ll.llama_vocab_n_tokens(self.vocab)
        self.threads = threads

    def tokenize(self, text):
        data = text.encode()
        ids = (ll.llama_token * len(data))()
        count = ll.llama_tokenize(self.vocab, data, len(data), ids, len(data), False, False)
        return list(ids[:count])

    def text(self, ids):
        piece = ctypes.create_string_buffer(256)
        out = b""
        for token in ids:
            length = ll.llama_token_to_piece(self.vocab, token, piece, 256, 0, True)
            out += piece.raw[:length]
        return out.decode(errors="replace")


class Context:
    """A KV cache for `sequences` of up to `length` tokens, of which the first `shared` are common."""

    def __init__(self, model, sequences, length, variant, shared=0):
        unified, flash = VARIANTS[variant]
        cells = shared + sequences * (length - shared) if unified else sequences * length
        params = ll.llama_context_default_params()
        params.n_ctx = -(-cells // 256) * 256
        if not unified:
            params.n_ctx = -(-length // 256) * 256 * sequences
        params.n_seq_max = sequences
        params.kv_unified = unified
        params.flash_attn_type = 1 if flash else 0
        params.n_threads = params.n_threads_batch = model.threads
        params.no_perf = True
        self.model = model
        self.handle = ll.llama_init_from_model(model.handle, params)
        if not self.handle:
            raise SystemExit(f"llama.cpp makes no context for {sequences} x {length} ({variant})")
        self.memory = ll.llama_get_memory(self.handle)
        self.capacity = params.n_batch
        self.batch = ll.llama_batch_init(self.capacity, 0, 1)

    def close(self):
        ll.llama_batch_free(self.batch)
        ll.llama_free(self.handle)

    def decode(self, tokens):
        """Computes `(token, position, sequence, wants logits)`; the greedy tokens of those that want."""
        batch, wanted = self.batch, []
        for i, (token, position, sequence, wants) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
            batch.seq_id[i][0], batch.logits[i] = sequence, wants
            if wants:
                wanted.append(i)
        batch.n_tokens = len(tokens)
        status = ll.llama_decode(self.handle, batch)
        if status != 0:
            raise SystemExit(f"llama_decode gives {status}")
        rows = (ll.llama_get_logits_ith(self.handle, i) for i in wanted)
        return [int(np.ctypeslib.as_array(row, (self.model.size,)).argmax()) for row in rows]

    def prefill(self, ids, start=0, sequence=0):
        """The greedy token after `ids`, which stand from position `start` on."""
        last = len(ids) - 1
        return self.decode([(t, start + i, sequence, i == last) for i, t in enumerate(ids)])[0]

    def clear(self):
        ll.llama_memory_clear(self.memory, False)

    def fork(self, sequences):
        """Gives sequences 1.. what sequence 0 holds."""
        for sequence in range(1, sequences):
            ll.llama_memory_seq_cp(self.memory, 0, sequence, -1, -1)


class Client:
    """One completion after another, the cache of the last prompt kept: what `llama_cpp.Llama` and the server
    over it do, without the cost of HTTP."""

    def __init__(self, context):
        self.context, self.held = context, []

    def complete(self, prompt, count):
        same = next((i for i, (a, b) in enumerate(zip(prompt, self.held)) if a != b), min(len(prompt), len(self.held)))
        same = min(same, len(prompt) - 1)
        ll.llama_memory_seq_rm(self.context.memory, 0, same, -1)
        ids = [self.context.prefill(prompt[same:], same)]
        while len(ids) < count:
            ids += self.context.decode([(ids[-1], len(prompt) + len(ids) - 1, 0, True)])
        self.held = prompt + ids[:-1]
        return ids


def generate_side_by_side(context, firsts, starts, count):
    """Continues each sequence to `count` tokens, all in one batch a step."""
    drafts = [[token] for token in firsts]
    for step in range(count - 1):
        tokens = [(d[-1], start + step, s, True) for s, (d, start) in enumerate(zip(drafts, starts))]
        for draft, token in zip(drafts, context.decode(tokens)):
            draft.append(token)
    return drafts


def contemplate_by_calls(model, work, variant):
    """Eight drafts and a chair by a client, call after call; also the time of the first draft."""
    longest = len(work.chair([[0] * work.draft_tokens] * work.drafts)) + work.draft_tokens
    client = Client(Context(model, 1, longest, variant))

    def all_calls():
        one, first = timed(lambda: client.complete(work.proposal(0), work.draft_tokens))
        drafts = [first] + [client.complete(work.proposal(a), work.draft_tokens) for a in range(1, work.drafts)]
        return one, drafts, client.complete(work.chair(drafts), work.draft_tokens)

    total, (one, drafts, answer) = timed(all_calls)
    client.context.close()
    return total, one, drafts, answer


def contemplate_in_batches(model, work, variant):
    """The same by a program that keeps the drafts in one batch itself."""
    longest = len(work.chair([[0] * work.draft_tokens] * work.drafts)) + work.draft_tokens
    context = Context(model, work.drafts, longest, variant, shared=work.shared)

    def run():
        context.prefill(work.shared_prompt())
        context.fork(work.drafts)
        proposals = [work.proposal(agent)[work.shared :] for agent in range(work.drafts)]
        tokens = [
            (token, work.shared + i, agent, i == len(hint) - 1)
            for agent, hint in enumerate(proposals)
            for i, token in enumerate(hint)
        ]
        starts = [work.shared + len(hint) for hint in proposals]
        drafts = generate_side_by_side(context, context.decode(tokens), starts, work.draft_tokens)
        ll.llama_memory_seq_rm(context.memory, 0, work.shared, -1)
        for agent in range(1, work.drafts):
            ll.llama_memory_seq_rm(context.memory, agent, -1, -1)
        chair = work.chair(drafts)
        first = context.prefill(chair[work.shared :], work.shared)
        generate_side_by_side(context, [first], [len(chair)], work.draft_tokens)

    total, _ = timed(run)
    context.close()
    return total


def prefill_rate(model, work, count, variant):
    context = Context(model, 1, 512, variant)
    context.prefill(work.ids[:16])

    def once():
        context.clear()
        return timed(lambda: context.prefill(work.ids[:count]))[0]

    rate = count / min(once() for _ in range(work.repeats))
    context.close()
    return rate


def decode_rate(model, work, agents, variant, tokens=None, repeats=None):
    tokens = tokens or work.decode_tokens
    context = Context(model, agents, work.shared + 1 + tokens, variant, shared=work.shared)

    def once():
        context.clear()
        context.prefill(work.shared_prompt())
        context.fork(agents)
        own = [(work.own_token(agent), work.shared, agent, True) for agent in range(agents)]
        firsts = context.decode(own)
        return timed(lambda: generate_side_by_side(context, firsts, [work.shared + 1] * agents, tokens))[0]

    rate = agents * (tokens - 1) / min(once() for _ in range(repeats or work.repeats))
    context.close()
    return rate


def tune(model, work):
    """The fastest variant for prompts, for one sequence, and for several: llama.cpp at its best on this machine."""
    best = lambda rate, names: max(names, key=rate)
    for name, rate in (
        ("prefill", lambda v: prefill_rate(model, work, work.prefill[-1], v)),
        ("alone", lambda v: decode_rate(model, work, 1, v, tokens=24)),
    ):
        emit(variant=name, value=best(rate, ["unified-flash", "unified"]))
    emit(variant="many", value=best(lambda v: decode_rate(model, work, 8, v, tokens=12, repeats=2), VARIANTS))


def turn(model, work, variants):
    total, one, drafts, answer = contemplate_by_calls(model, work, variants["alone"])
    figure("contemplation", total)
    figure("agent", one)
    figure("peak", peak_mib())
    figure("contemplation-batched", contemplate_in_batches(model, work, variants["many"]))
    for count in work.prefill:
        figure(f"prefill-{count}", prefill_rate(model, work, count, variants["prefill"]))
    for agents in work.agents:
        variant = variants["alone" if agents == 1 else "many"]
        figure(f"decode-{agents}", decode_rate(model, work, agents, variant))
    emit(greedy=[*drafts, answer], text=model.text(drafts[0]))


def requantize(source, target):
    """Writes `source` as Q4_0 with the library's own quantizer."""
    params = ll.llama_model_quantize_default_params()
    params.ftype = 2  # LLAMA_FTYPE_MOSTLY_Q4_0
    params.allow_requantize = True
    if ll.llama_model_quantize(source.encode(), target.encode(), params) != 0:
        raise SystemExit(f"llama.cpp does not requantize {source}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tune", action="store_true", help="print the fastest variants only")
    parser.add_argument("--variants", default="prefill=unified-flash,alone=unified-flash,many=unified-flash")
    parser.add_argument("--requantize", metavar="TARGET", help="write MODEL as Q4_0 and end")
    args = parser.parse_args()
    # Progress and warnings of the library are not for the table. The name keeps the callback alive.
    silent = ll.llama_log_callback(lambda level, text, data: None)
    ll.llama_log_set(silent, None)
    ll.llama_backend_init()
    if args.requantize:
        return requantize(args.model, args.requantize)

    def load():
        model = Model(args.model, args.threads)
        Context(model, 1, 512, "unified-flash").close()
        return model

    emit(built=ll.llama_print_system_info().decode())
    before = peak_mib()
    seconds, model = timed(load)
    figure("load", seconds)
    work = Workload(model.tokenize(TEXT.read_text()))
    emit(ids=len(work.ids), digest=work.digest(), empty_mib=before)
    if args.tune:
        return tune(model, work)
    turn(model, work, dict(pair.split("=") for pair in args.variants.split(",")))


if __name__ == "__main__":
    main()
