#!/usr/bin/env python3
"""Times the reference's own training step on a GPU beside ours, in turns, at qwen3-8b's draft; see README.md."""

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path

HIDDEN, VOCABULARY, CAPTURED, BLOCK = 4096, 151936, 5, 16


class Reference:
    """The reference's model and optimizer with made-up weights, in bfloat16."""

    def __init__(self, layers, attention, device):
        import torch
        from specforge.modeling.draft.dflash import DFlashDraftModel
        from specforge.optimizer import BF16Optimizer
        from transformers import Qwen3Config

        self.torch, self.device, self.attention = torch, device, attention
        config = Qwen3Config(
            vocab_size=VOCABULARY,
            hidden_size=HIDDEN,
            intermediate_size=12288,
            num_hidden_layers=layers,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=128,
            layer_types=["full_attention"] * layers,
        )
        config.num_target_layers = 36
        config.block_size = BLOCK
        config.dflash_config = {
            "target_layer_ids": [1, 9, 17, 25, 33],
            "mask_token_id": VOCABULARY - 1,
        }
        config._attn_implementation = attention
        torch.manual_seed(1)
        with torch.device(device):
            self.draft = DFlashDraftModel(config).to(torch.bfloat16)
            self.embedding = torch.nn.Embedding(VOCABULARY, HIDDEN, dtype=torch.bfloat16)
            self.head = torch.nn.Linear(HIDDEN, VOCABULARY, bias=False, dtype=torch.bfloat16)
        for frozen in (self.embedding, self.head):
            torch.nn.init.normal_(frozen.weight, std=0.02)
            frozen.weight.requires_grad_(False)
        self.draft.train()
        self.optimizer = BF16Optimizer(
            self.draft, 1e-4, max_grad_norm=1.0, total_steps=1000, warmup_ratio=0, lr_scheduler="constant"
        )

    def milliseconds(self, tokens, anchors, warm_up, steps):
        """Of a step, its rows on the GPU already: wall time of `steps` steps over their number."""
        from specforge.algorithms.common.dflash_family_model import OnlineDFlashModel

        torch = self.torch
        model = OnlineDFlashModel(
            self.draft,
            self.head,
            self.embedding,
            mask_token_id=VOCABULARY - 1,
            block_size=BLOCK,
            attention_backend=self.attention,
            num_anchors=anchors,
        )
        with torch.device(self.device):
            ids = torch.randint(0, VOCABULARY - 1, (1, tokens))
            hidden_states = torch.randn(1, tokens, CAPTURED * HIDDEN, dtype=torch.bfloat16)
            loss_mask = torch.ones(1, tokens)
            drawn = torch.sort(torch.randperm(tokens - BLOCK)[:anchors]).values[None]
            keep = torch.ones_like(drawn, dtype=torch.bool)
        model._sample_anchor_positions = lambda *_: (drawn, keep)

        def step():
            loss, _, _ = model(ids, hidden_states, loss_mask)
            loss.backward()
            self.optimizer.step()

        for _ in range(warm_up):
            step()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
        elapsed = (time.perf_counter() - start) * 1e3 / steps
        return elapsed, torch.cuda.max_memory_allocated() / 2**30


def ours(arguments, tokens, anchors):
    """Milliseconds of a step, and GiB of the GPU in use."""
    command = [arguments.training_step_cuda.resolve(), "--layers", arguments.layers, "--steps", arguments.steps, tokens, anchors]
    done = subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True)
    milliseconds = re.search(r"([0-9.]+) ms a step", done.stdout)
    memory = re.search(r"([0-9.]+) GiB", done.stdout)
    return float(milliseconds[1]), float(memory[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--specforge", type=Path, required=True, help="a checkout of the reference")
    parser.add_argument("--training-step-cuda", type=Path, required=True, help="our program")
    parser.add_argument("--sizes", nargs="+", default=["768x256", "768x512", "3072x256"], help="tokens x anchors")
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--attention", default="flex_attention", choices=["flex_attention", "sdpa", "eager"])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each program in a round")
    parser.add_argument("--warm-up", type=int, default=3)
    arguments = parser.parse_args()
    sys.path.insert(0, str(arguments.specforge))
    reference = Reference(arguments.layers, arguments.attention, "cuda")
    for size in arguments.sizes:
        tokens, anchors = (int(number) for number in size.split("x"))
        mine, theirs = [], []
        for _ in range(arguments.rounds):
            theirs.append(reference.milliseconds(tokens, anchors, arguments.warm_up, arguments.steps))
            mine.append(ours(arguments, tokens, anchors))
        (my_ms, my_gib), (their_ms, their_gib) = min(mine), min(theirs)
        print(
            f"S {tokens}, {anchors} anchors: ours {my_ms:.1f} ms and {my_gib:.1f} GiB, reference "
            f"({arguments.attention}) {their_ms:.1f} ms and {their_gib:.1f} GiB: {their_ms / my_ms:.2f} times as fast",
            flush=True,
        )


if __name__ == "__main__":
    main()
