"""Command lines that ``--help`` shows. Every command has one, and a test reads each as the command would."""

from __future__ import annotations

EXAMPLES: dict[str, tuple[str, ...]] = {
    "train": (
        "diffsiam train --config configs/quickstart.json",
        "diffsiam train --config configs/quickstart.json seed=1 run.dir=runs/second --dry-run",
    ),
    "plan": ("diffsiam plan --config configs/bedroom.json --gpus 4 --gpu h100",),
    "rooms": ("diffsiam rooms --px 32 --out rooms.png",),
    "inspect": (
        "diffsiam inspect photos",
        "diffsiam inspect lsun/bedroom_train_lmdb --all --threads 8",
    ),
    "prepare": ("diffsiam prepare lsun bedroom128 --px 128 --workers 16",),
    "convert": (
        "diffsiam convert checkpoint.pt unet.safetensors",
        "diffsiam convert unet.safetensors for_diffusers --to diffusers",
    ),
    "export": ("diffsiam export runs/quickstart exported",),
    "evaluate": (
        "diffsiam evaluate runs/quickstart",
        "diffsiam evaluate runs/cifar10 --suite linear --data CIFAR10=cifar-10-batches-py",
    ),
    "counterfactual": (
        "diffsiam counterfactual runs/quickstart --pairs 3 --guidance-scale 3",
        "diffsiam counterfactual runs/bedroom -i mine.jpg -i other.jpg --subsets 0-2,6-10 --controls",
    ),
    "interpolate": ("diffsiam interpolate runs/quickstart -i 3 -i 8",),
    "manipulate": (
        "diffsiam manipulate runs/quickstart -a brightness -a wall=navy --dims 12",
        "diffsiam manipulate runs/celeba64 -a Smiling --labels list_attr_celeba.txt --dims 16",
    ),
    "lost-attributes": ("diffsiam lost-attributes builtin:rooms16",),
    "inspect-model": ("diffsiam inspect-model builtin:rooms32 --count 128",),
    "measure-edits": ("diffsiam measure-edits runs/quickstart_pdae runs/quickstart --guidance-scale 3",),
    "config show": ("diffsiam config show configs/bedroom.json method=literal",),
    "config explain": (
        "diffsiam config explain subsets.choice",
        "diffsiam config explain optimizer",
    ),
    "replay": ("diffsiam replay runs/bedroom",),
    "verify-resume": ("diffsiam verify-resume --config configs/quickstart.json --steps 20 --ranks 2",),
    "report": (
        "diffsiam report runs/quickstart",
        "diffsiam report runs/a runs/b --out both.html",
    ),
    "explore": ("diffsiam explore runs/quickstart",),
    "doctor": ("diffsiam doctor", "diffsiam doctor --quick --require cuda,triton,dali"),
    "runs list": ("diffsiam runs list", "diffsiam runs list sweeps --json"),
    "runs compare": ("diffsiam runs compare runs/quickstart runs/quickstart_pdae",),
    "runs reproduce": (
        "diffsiam runs reproduce runs/quickstart",
        "diffsiam runs reproduce runs/bedroom --out runs/bedroom2 --prepare",
    ),
    "runs prune": ("diffsiam runs prune runs/quickstart runs/bedroom --keep 1 --yes",),
}


def epilog(command: str) -> str | None:
    """The examples of a command ("config show") for the end of its help."""
    lines = EXAMPLES.get(command)
    return None if lines is None else "\n  ".join(("\b\nExamples:", *lines))
