"""Fine-tune an AI worker's model on its own examples; the arguments are a worker's nine hyperparameters and their defaults."""

import argparse
import sys

import tunesmith

HYPERPARAMETERS = {
    "lora_alpha": (64, "scale of the LoRA update: alpha / rank"),
    "lora_dropout": (0.05, "dropout on the LoRA branch's input"),
    "batch_size": (4, "examples per accumulation step"),
    "accumulation_steps": (4, "accumulation steps per update: 4 x 4 examples"),
    "n_steps": (500, "most updates"),
    "n_epochs": (500, "most passes over the examples; n_steps may end the run first"),
    "learning_rate_multiplier": (2.5e-5, "times the base learning rate, which is 1 here: the learning rate itself"),
    "training_split": (0.8, "share of the examples that trains; the rest validates"),
    "stop_eval_loss": (0.01, "stop when the validation loss falls below it"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("data", help="examples, one JSON object a line")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="base model")
    parser.add_argument("--output", default="runs/ai_worker", help="run folder; the same command goes on with an interrupted run")
    for name, (default, words) in HYPERPARAMETERS.items():
        parser.add_argument(f"--{name}", type=type(default), default=default, help=words)
    asked = vars(parser.parse_args())
    run = tunesmith.train(asked.pop("data"), **asked, on_metric=lambda point: print(point.message(), file=sys.stderr))
    for name, base in run.summary["base"].items():
        print(f"{name}: {base:.4f} -> {run.summary['tuned'][name]:.4f}")
    print(f"{run.result['reason']} Adapter: {run.directory / 'adapter'}")


if __name__ == "__main__":
    main()
