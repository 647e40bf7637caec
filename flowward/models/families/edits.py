"""What families of editing models share: pictures beside the text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from ...prompts import SOURCE, SOURCES, Prompt, sources_of, text_of
from ...prompts.pictures import picture
from .family import Family


class Edits(Family):
    """Put it before the family of the same network, `class FluxKontext(Edits, Flux)`.

    A condition also has `source` [N, S, *shape], the latents of S source images. If a family takes several numbers of
    sources, `sources` [N] says how many of them each prompt has. Rows with fewer sources are padded with zeros, and
    never go through the network in one pass with others: see `passes`.

    The pipelines choose a size for their sources from the shape of each. Here all are resized and cropped to the size
    of the samples.
    """

    sources: ClassVar[range] = range(1, 2)
    inputs: ClassVar[str] = "image=image, prompt=prompt"

    def empty(self) -> dict[str, Tensor]:
        return {name: rows for name, rows in super().empty().items() if name not in (SOURCE, SOURCES)}

    def pictures(self, prompt: Prompt) -> Tensor:
        """Source images, resized and centre-cropped to the size of the samples: [S, 3, H, W] in [0, 1]."""
        size = self.height, self.width
        found = [picture(path, size) for path in sources_of(prompt)]
        return torch.stack(found) if found else torch.empty(0, 3, *size)

    def for_pillow(self, prompt: Prompt) -> list[Image.Image]:
        """The same images, as pipelines take them."""
        pixels = (255 * self.pictures(prompt)).round().byte().permute(0, 2, 3, 1).numpy()
        return [Image.fromarray(each) for each in pixels]

    def scaled(self, prompt: Prompt) -> Tensor:
        """The same images as the autoencoder takes them: [S, 3, H, W] in [-1, 1]."""
        return 2 * self.pictures(prompt) - 1

    def encode_sources(self, prompts: list[Prompt]) -> dict[str, Tensor]:
        """Source images as latents; encoded one by one to save memory."""
        vae = self.pipe.vae
        rows = []
        for prompt in prompts:
            images = self.scaled(prompt).to(vae.device, vae.dtype)
            found = [self.encode_images(each[None])[0] for each in images]
            rows.append(torch.stack(found) if found else images.new_empty(0, *self.shape))
        many = torch.tensor([float(len(row)) for row in rows], device=vae.device)
        known = {SOURCES: many} if len(self.sources) > 1 else {}
        return {SOURCE: nn.utils.rnn.pad_sequence(rows, batch_first=True), **known}

    def shown(self, prompt: Prompt) -> dict[str, Any]:
        """The pipeline's arguments for the sources of a prompt."""
        return {"image": self.for_pillow(prompt)} if sources_of(prompt) else {}

    def reference(self, prompts: list[Any], x: Tensor, steps: int, guidance: float, **more: Any) -> Tensor:
        """The pipeline, one prompt at a time: it takes one list of images for all its prompts."""
        draw = super().reference
        return torch.cat(
            [
                draw([text_of(prompt)], start, steps, guidance, **self.shown(prompt), **more)
                for prompt, start in zip(prompts, x.split(1), strict=True)
            ]
        )


def passes(rows: Mapping[str, Tensor], masked: bool = True) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """The rows of a condition that a network can take together: those with the same number of sources.

    Args:
        rows: tensors [N, ...] by their names.
        masked: the network ignores the padding of shorter texts; otherwise texts of a pass have the same length.

    Returns:
        pairs of row numbers and the tensors of these rows, without padding.
    """
    some = SOURCES in rows and rows[SOURCE].shape[1]  # where no row has sources, numbers are not read: a GPU would wait
    counts = [rows[SOURCES].long()] if some else []
    lengths = [] if masked else [rows["mask"].sum(1, dtype=torch.long)]
    if not counts + lengths:
        return [(torch.arange(len(next(iter(rows.values())))), dict(rows))]
    kinds, kind_of = torch.stack(counts + lengths, 1).unique(dim=0, return_inverse=True)
    found = []
    for number, kind in enumerate(kinds.tolist()):
        own = (kind_of == number).nonzero().flatten()
        part = {name: tensor[own] if len(kinds) > 1 else tensor for name, tensor in rows.items() if name != SOURCES}
        if counts:
            part[SOURCE] = part[SOURCE][:, : kind[0]]
        if lengths:
            part |= {name: part[name][:, : kind[-1]] for name in ("words", "mask")}
        found.append((own, part))
    return found
