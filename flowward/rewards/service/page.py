"""The page of a reward server: what it is, and how to call it. It needs nothing from outside, so it works offline."""

from __future__ import annotations

PAGE = """flowward reward server: {name}

It scores images: one number per image, higher is better. To use it in a training run:

    flowward train --reward {address}

A call may have {max_batch} images and {megabytes:g} MB of them, counted as float32.{token}

GET  /health    {{"status": "ok"}} while the server is up
GET  /reward    the reward's name, attributes and limits, as JSON
GET  /metrics   counters for Prometheus
POST /refuse    JSON {{"prompts": [...], "metadata": null or [{{...}}, ...]}}
                answer: {{"refused": null}}, or the reason why a prompt cannot be scored
POST /score     images, prompts and metadata, in one of two formats:
                Content-Type: application/json
                    {{"images": [PNG files in base64], "prompts": [...], "metadata": null or [{{...}}, ...]}}
                    (for a video, a list of PNG files)
                Content-Type: application/x-safetensors
                    two tensors. `images`: float32, float16 or uint8, [B, 3, H, W] or [B, F, 3, H, W], in [0, 1] or
                    0 to 255. `request`: uint8, the JSON object above without `images`
                answer: {{"scores": [one number per image]}}

Any status other than 200 comes with {{"detail": "a sentence"}}. /openapi.json describes these paths for programs.

Example:

    curl {address}/score -H 'Content-Type: application/json' \\
        -d "{{\\"images\\": [\\"$(base64 -w0 image.png)\\"], \\"prompts\\": [\\"a red cube\\"]}}"
"""


def page(name: str, address: str, max_batch: int, max_bytes: float, guarded: bool) -> str:
    """The page as plain text.

    Args:
        name: of the reward.
        address: http://host:port, as the reader has called it.
        guarded: whether calls need a token.
    """
    token = "\nSend the token with every call but /health: Authorization: Bearer TOKEN." if guarded else ""
    return PAGE.format(name=name, address=address, max_batch=max_batch, megabytes=max_bytes / 1e6, token=token)
