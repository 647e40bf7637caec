"""A reward server in one file: copy it into the environment that a scorer needs, where flowward is not installed.

    pip install safetensors numpy pillow hpsv3        # in an environment of its own, with the pins of that scorer
    python reward_server.py hpsv3 --port 8000
    flowward train --reward http://HOST:8000 ...      # where flowward is

It needs Python 3.9, numpy and safetensors. It knows two scorers:

- `hpsv3` (Ma et al., 2025, arXiv:2508.03789) returns a mean and a spread; its mean, about -5 to 15, is the score.
- `videoalign` scores videos (VideoReward: Liu et al., 2025, arXiv:2501.13918). Clone github.com/KwaiVGI/VideoAlign,
  make the environment that it describes, add `pip install safetensors imageio imageio-ffmpeg`, put the weights into its
  folder `checkpoints`, and start this file there. The score is `Overall`, the sum of visual quality, motion quality
  and text alignment, each normalised; --part MQ takes one of the three.

For another scorer write a function (images float32 [B, 3, H, W] in [0, 1], prompts, metadata) -> B numbers, and add it
to SCORERS; those in VIDEOS get [B, F, 3, H, W].
"""

from __future__ import annotations

import argparse
import hmac
import json
import os
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from safetensors.numpy import load

LIMIT = 1_000_000_000  # bytes of a call's images as float32


def hpsv3_scorer(options):
    from hpsv3 import HPSv3RewardInferencer
    from PIL import Image

    inferencer = HPSv3RewardInferencer(device="cuda")

    def score(images, prompts, metadata):
        pixels = [Image.fromarray(image) for image in eight_bits(images)]
        # Named arguments: their order differs between the releases and the source of hpsv3.
        rewards = inferencer.reward(image_paths=pixels, prompts=list(prompts))
        return [float(reward[0]) for reward in rewards]

    return score


def videoalign_scorer(options):
    import imageio.v2 as imageio

    sys.path.insert(0, os.getcwd())  # its modules lie in the clone, not in a package
    from inference import VideoVLMRewardInference

    inferencer = VideoVLMRewardInference(options.checkpoints, device="cuda")

    def score(videos, prompts, metadata):
        with tempfile.TemporaryDirectory() as folder:
            paths = [os.path.join(folder, f"{number}.mp4") for number in range(len(videos))]
            for number, path in enumerate(paths):
                imageio.mimwrite(path, list(eight_bits(videos[number])), fps=options.fps, macro_block_size=1)
            rewards = inferencer.reward(paths, list(prompts), use_norm=True)
        return [float(reward[options.part]) for reward in rewards]

    return score


SCORERS = {"hpsv3": hpsv3_scorer, "videoalign": videoalign_scorer}
VIDEOS = {"videoalign"}  # those that get whole videos


def eight_bits(images):
    """float32 [N, 3, H, W] in [0, 1] as uint8 [N, H, W, 3]."""
    return (images.clip(0, 1) * 255).round().astype(np.uint8).transpose(0, 2, 3, 1)


def read(body):
    """(images, prompts, metadata) of a call: a safetensors file of `images`, and of `request`, the bytes of a JSON."""
    tensors = load(body)
    request = json.loads(tensors["request"].tobytes())
    images, prompts, metadata = tensors["images"], request["prompts"], request.get("metadata")
    if images.dtype not in (np.float32, np.float16, np.uint8) or len(images) != len(prompts):
        raise ValueError("images must be float32, float16 or uint8, one for each prompt")
    pixels = images.astype(np.float32)
    return pixels / 255 if images.dtype == np.uint8 else pixels, prompts, metadata


def serve(scorer, name, host="127.0.0.1", port=8000, token=None, takes_videos=False, max_batch=64):
    """A server, which `serve_forever` starts."""
    turn = threading.Lock()  # one call at a time
    about = {"reward": name, "takes_videos": takes_videos, "max_batch": max_batch, "max_bytes": LIMIT}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 60  # seconds that a caller may be silent

        def reply(self, status, content):
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            if status != 200:  # what is left of the request is not read
                self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(body)

        def allowed(self):
            given = self.headers.get("Authorization", "")
            if token is None or hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
                return True
            self.reply(401, {"detail": "the token is missing or wrong; send it as Authorization: Bearer TOKEN"})
            return False

        def do_GET(self):
            if self.path not in ("/health", "/reward"):
                self.reply(404, {"detail": "there is /health, /reward and /score"})
            elif self.path == "/health" or self.allowed():
                self.reply(200, {"status": "ok"} if self.path == "/health" else about)

        def do_POST(self):
            if self.path != "/score":
                return self.reply(404, {"detail": "there is /health, /reward and /score"})
            size = int(self.headers.get("Content-Length", 0))
            if not self.allowed():
                return None
            if self.headers.get("Content-Type") != "application/x-safetensors":
                return self.reply(415, {"detail": "the content type must be application/x-safetensors"})
            if not 0 <= size <= 1.1 * LIMIT:
                return self.reply(413, {"detail": f"a call may contain at most {LIMIT} bytes"})
            try:
                call = read(self.rfile.read(size))
            except Exception as error:  # OSError: the call came too slowly, and may come again
                return self.reply(408 if isinstance(error, OSError) else 422, {"detail": repr(error)})
            try:
                with turn:
                    scores = [float(score) for score in scorer(*call)]
            except (
                Exception,
                SystemExit,
            ) as error:  # a 500 with a sentence is final: the client reports it and does not ask again
                return self.reply(500, {"detail": f"{type(error).__name__}: {error}"})
            return self.reply(200, {"scores": scores})

        def log_message(self, *_):
            pass

    return ThreadingHTTPServer((host, port), Handler)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scorer", choices=list(SCORERS))
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--checkpoints", default="checkpoints", help="videoalign: folder of its weights")
    parser.add_argument(
        "--part", default="Overall", choices=["Overall", "VQ", "MQ", "TA"], help="videoalign: the score"
    )
    parser.add_argument("--fps", type=float, default=16.0, help="videoalign: frames per second of the model's videos")
    options = parser.parse_args()
    scorer, token = SCORERS[options.scorer](options), os.environ.get("FLOWWARD_TOKEN")
    server = serve(scorer, options.scorer, options.host, options.port, token, options.scorer in VIDEOS)
    print(f"serving at http://{options.host}:{options.port}", file=sys.stderr)
    server.serve_forever()
