#!/usr/bin/env python3
"""Times the reference's own training step on PyTorch CPU beside ours, alternated in one run.

Both programs get the same weights, samples and anchors from one file and as many steps; see README.md.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHAPES = {
    "tiny": dict(intermediate=480, heads=4, kv_heads=2, head_dim=32, layers=2, block_size=8),
    "smollm2": dict(intermediate=1536, heads=9, kv_heads=3, head_dim=64, layers=3, block_size=8),
    "qwen3-0.6b": dict(intermediate=3072, heads=16, kv_heads=8, head_dim=128, layers=2, block_size=16),
}
RATE = 6e-4
TARGET_LAYERS = 8


def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def build_step(shape_name, inputs, precision, attention):
    """Returns a function that runs one training step of the reference and gives its loss."""
    import torch
    from safetensors.torch import load_file
    from specforge.algorithms.common.dflash_family_model import OnlineDFlashModel
    from specforge.modeling.draft.dflash import DFlashDraftModel
    from specforge.optimizer import BF16Optimizer
    from transformers import Qwen3Config

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    tensors = load_file(inputs)
    embedding = tensors.pop("embed.weight").to(dtype)
    head = tensors.pop("lm_head.weight", embedding).to(dtype)
    input_ids = tensors.pop("input_ids").long()
    hidden_states = tensors.pop("hidden_states").to(dtype)
    anchors = tensors.pop("anchors").long()
    vocabulary, hidden = embedding.shape
    shape = SHAPES[shape_name]
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=shape["intermediate"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv_heads"],
        head_dim=shape["head_dim"],
        rope_theta=10000.0,
        layer_types=["full_attention"] * shape["layers"],
    )
    config.num_target_layers = TARGET_LAYERS
    config.block_size = shape["block_size"]
    captured = hidden_states.shape[-1] // hidden
    config.dflash_config = {
        "target_layer_ids": list(range(1, captured + 1)),
        "mask_token_id": vocabulary - 1,
    }
    config._attn_implementation = attention
    draft = DFlashDraftModel(config).to(dtype)
    draft.load_state_dict(tensors)
    del tensors
    draft.train()
    embed_tokens = torch.nn.Embedding.from_pretrained(embedding, freeze=True)
    lm_head = torch.nn.Linear(hidden, vocabulary, bias=False, device="meta")
    lm_head.weight = torch.nn.Parameter(head, requires_grad=False)
    model = OnlineDFlashModel(
        draft,
        lm_head,
        embed_tokens,
        mask_token_id=vocabulary - 1,
        block_size=shape["block_size"],
        attention_backend=attention,
        num_anchors=anchors.shape[1],
    )
    keep = torch.ones_like(anchors, dtype=torch.bool)
    model._sample_anchor_positions = lambda *_: (anchors, keep)
    loss_mask = torch.ones(input_ids.shape)
    optimizer = BF16Optimizer(
        draft, RATE, max_grad_norm=1.0, total_steps=1000, warmup_ratio=0, lr_scheduler="constant"
    )

    def step():
        loss, _, _ = model(input_ids, hidden_states, loss_mask)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def worker(arguments):
    """Runs as many steps as each line of the input says and answers with their times and losses."""
    sys.path.insert(0, str(arguments.specforge))
    import torch

    torch.set_num_threads(arguments.threads)
    step = build_step(arguments.shapes[0], arguments.inputs, arguments.precisions[0], arguments.attention)
    for line in sys.stdin:
        seconds, losses = [], []
        for _ in range(int(line)):
            start = time.perf_counter()
            losses.append(step())
            seconds.append(time.perf_counter() - start)
        print(json.dumps(dict(seconds=seconds, losses=losses, peak_mb=peak_mb())), flush=True)


class Reference:
    """The reference in a process of its own."""

    def __init__(self, arguments, shape, precision, attention, inputs):
        command = [sys.executable, __file__, "--worker", "--specforge", arguments.specforge]
        command += ["--threads", str(arguments.threads), "--shapes", shape, "--precisions", precision]
        command += ["--attention", attention, "--inputs", inputs]
        self.process = subprocess.Popen(
            [str(word) for word in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, steps):
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit("the reference's process ended without an answer; its message is above")
        return json.loads(answer)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def ours(arguments, shape, precision, extra):
    command = [arguments.training_step, "--shape", shape, "--threads", str(arguments.threads)]
    command += ["--precision", precision, *extra]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout) if "--json" in extra else None


def compare(arguments, shape, precision):
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        inputs = os.path.join(folder, "inputs.safetensors")
        ours(arguments, shape, "fp32", ["--write-inputs", inputs])
        reference = Reference(arguments, shape, precision, arguments.attention, inputs)
        first = reference.run(arguments.warm_up)["losses"][0]
        times = dict(reference=[], ours=[])
        for _ in range(arguments.rounds):
            steps = ["--steps", str(arguments.steps), "--warm-up", str(arguments.warm_up), "--json"]
            mine = ours(arguments, shape, precision, steps)
            theirs = reference.run(arguments.steps)
            times["ours"].append(mine["median_s"])
            times["reference"] += theirs["seconds"]
        reference.close()
    step = {name: statistics.median(seconds) for name, seconds in times.items()}
    return dict(
        shape=shape,
        precision=precision,
        threads=arguments.threads,
        attention=arguments.attention,
        ours_s=step["ours"],
        reference_s=step["reference"],
        speedup=step["reference"] / step["ours"],
        ours_mb=mine["peak_mb"],
        reference_mb=theirs["peak_mb"],
        memory_ratio=mine["peak_mb"] / theirs["peak_mb"],
        ours_first_loss=mine["first_loss"],
        reference_first_loss=first,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--specforge", type=Path, required=True, help="a checkout of the reference")
    parser.add_argument("--training-step", type=Path, help="our program training_step")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--precisions", nargs="+", default=["fp32"], choices=["fp32", "bf16"])
    parser.add_argument("--attention", default="sdpa", choices=["sdpa", "eager"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each program in a round")
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--scratch", help="where the inputs are written (default: the system's)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--inputs", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return worker(arguments)
    if arguments.training_step is None:
        parser.error("--training-step is required")
    for shape in arguments.shapes:
        for precision in arguments.precisions:
            r = compare(arguments, shape, precision)
            if arguments.json:
                print(json.dumps(r), flush=True)
                continue
            print(
                f"{shape}, {precision}, {arguments.threads} threads: "
                f"ours {r['ours_s'] * 1e3:.1f} ms, reference ({r['attention']}) {r['reference_s'] * 1e3:.1f} ms, "
                f"{r['speedup']:.2f} times as fast; memory {r['ours_mb']:.0f} and {r['reference_mb']:.0f} MB, "
                f"{r['memory_ratio']:.2f} of it; loss of the first step "
                f"{r['ours_first_loss']:.6f} and {r['reference_first_loss']:.6f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
