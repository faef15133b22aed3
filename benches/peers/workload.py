"""What every peer computes: the same token ids, cut from one text, in the same order.

`benches/src/bin/peer/workload.rs` is the same for our side; compare.py checks that both see the same ids.
"""

import hashlib
import json
import pathlib
import struct
import time

HERE = pathlib.Path(__file__).parent
TEXT = HERE / "text.txt"


class Workload:
    def __init__(self, ids):
        self.__dict__.update(json.loads((HERE / "workload.json").read_text()))
        self.ids = ids

    def digest(self):
        """Of the text's ids: equal digests, equal prompts."""
        return hashlib.sha256(struct.pack(f"<{len(self.ids)}I", *self.ids)).hexdigest()[:16]

    def shared_prompt(self):
        return self.ids[: self.shared]

    def own_token(self, agent):
        """The first token in which agents of the decode figures differ."""
        return self.ids[300 + agent]

    def proposal(self, agent):
        """The prompt of a draft: what all share, then a few words of its own."""
        at = 512 + agent * self.hint_tokens
        return self.shared_prompt() + self.ids[at : at + self.hint_tokens]

    def chair(self, drafts):
        """The prompt of the chair: what all share, and the text of every draft."""
        at = 512 + self.drafts * self.hint_tokens
        ids = list(self.shared_prompt())
        for draft in drafts:
            ids += self.ids[at : at + self.hint_tokens] + draft
            at += self.hint_tokens
        return ids + self.ids[at : at + self.cue_tokens]


def emit(**line):
    print(json.dumps(line), flush=True)


def figure(name, value):
    emit(figure=name, value=value)


def timed(call):
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def peak_mib():
    """Peak resident memory of this process."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no VmHWM")
