#!/usr/bin/env python3
"""Times a target's prefill and greedy decoding on a GPU beside transformers, at qwen3-8b; see README.md."""

import argparse
import subprocess
import time


def transformers_rates(layers, prompt, new_tokens, repeats):
    """Tokens per second of a prefill that hands back all hidden states, and of decoding behind 512 tokens."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=151936,
        hidden_size=4096,
        intermediate_size=12288,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=False,
        dtype=torch.bfloat16,
    )
    with torch.device("cuda"):
        model = Qwen3ForCausalLM(config).to(torch.bfloat16).eval()
        tokens = torch.randint(0, 151936, (1, prompt))
    prefill = decode = float("inf")
    with torch.inference_mode():
        for _ in range(repeats):
            torch.cuda.synchronize()
            start = time.perf_counter()
            model.model(tokens, output_hidden_states=True, use_cache=False)
            torch.cuda.synchronize()
            prefill = min(prefill, time.perf_counter() - start)
        for _ in range(repeats):
            output = model(tokens[:, :512], use_cache=True, logits_to_keep=1)
            token = output.logits[0, -1].argmax()
            token.item()
            start = time.perf_counter()
            for _ in range(new_tokens):
                output = model(token.view(1, 1), past_key_values=output.past_key_values, use_cache=True)
                token = output.logits[0, -1].argmax()
                token.item()
            decode = min(decode, time.perf_counter() - start)
    return prompt / prefill, new_tokens / decode


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target-cuda", required=True, help="our program")
    parser.add_argument("--layers", type=int, default=36)
    parser.add_argument("--prompt", type=int, default=4096)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    sizes = [arguments.layers, arguments.prompt, arguments.new_tokens, arguments.repeats]
    flags = ["--layers", "--prompt", "--new-tokens", "--repeats"]
    command = [arguments.target_cuda] + [str(word) for pair in zip(flags, sizes) for word in pair]
    print(subprocess.run(command, check=True, capture_output=True, text=True).stdout, end="", flush=True)
    prefill, decode = transformers_rates(*sizes)
    print(f"transformers: prefill {prefill:.0f} tokens/s, decoding {decode:.1f} tokens/s")


if __name__ == "__main__":
    main()
