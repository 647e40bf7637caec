"""Train LoRA adapters of the built-in model, measure and sample it, and export it: no GPU, no download."""

import flowward

policy = flowward.load("scenes", lora_rank=16)
run = flowward.fit("advantageflow", policy, "scenes", "scenes", iterations=20)
print(run.evaluate())
run.sample("a red circle")[0].save("red_circle.png")
run.export("my-lora")
