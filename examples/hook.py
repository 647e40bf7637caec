"""Save the best image of every tenth iteration: flowward train --output runs/first --hook examples/hook.py:best"""

from pathlib import Path

from PIL import Image

from flowward.training.metrics import Step

FOLDER, EVERY = Path("best"), 10


def best(step: Step) -> None:
    if step.index % EVERY or not step.prompts:  # a step that only evaluates has no images
        return
    reward = sum(step.rewards.values())
    number = int(reward.argmax())
    pixels = (step.images[number].permute(1, 2, 0) * 255).round().byte().numpy()
    FOLDER.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(FOLDER / f"{step.index:06d}.png")
    print(f"{step.index}: {reward[number]:.3f} for '{step.prompts[number]}'")
