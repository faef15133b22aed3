"""One turn of mistral.rs, one request after another: its Python package lends the engine to one caller at a time, and
several answers to one request (`n_choices`) end in an error on a processor. Prints a line of JSON for each figure."""

import argparse
import os
import pathlib

from workload import TEXT, Workload, emit, figure, peak_mib, timed

# About the workload's 284 tokens: the package takes text, not ids.
SHARED_SHARE = 284 / 682


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    # Read once, when the library starts its threads.
    os.environ["RAYON_NUM_THREADS"] = str(args.threads)
    import mistralrs

    def load():
        which = mistralrs.Which.GGUF(
            tok_model_id=None,
            quantized_model_id=str(args.model.parent),
            quantized_filename=args.model.name,
        )
        return mistralrs.Runner(which=which, max_seqs=32)

    seconds, runner = timed(load)
    figure("load", seconds)
    work, text = Workload([]), TEXT.read_text()
    shared = text[: int(len(text) * SHARED_SHARE)]

    def complete(prompt, tokens):
        request = mistralrs.CompletionRequest(
            prompt=prompt, model="default", max_tokens=tokens, temperature=0.0, ignore_eos=True
        )
        return runner.send_completion_request(request)

    reply = complete(text, 2)
    figure("prefill-512", reply.usage.avg_prompt_tok_per_sec)
    usage = complete(shared, 32).usage
    figure("decode-1", usage.avg_compl_tok_per_sec)
    figure("peak", peak_mib())
    emit(text=complete(shared, 24).choices[0].text)


if __name__ == "__main__":
    main()
